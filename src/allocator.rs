//! The program's memory allocator: mimalloc, asked for alignment only where there is something to align.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mimalloc;

unsafe extern "C" {
    /// Free what is kept for later. The crate declares it together with a hundred others that need one more crate.
    fn mi_collect(force: bool);
}

/// Allocates with mimalloc. To be made a `#[global_allocator]`.
///
/// The crate `mimalloc` says an alignment with every request, which takes three times as many instructions as
/// one without; a request of a visitor takes eighty of each process.
pub struct Allocator;

// SAFETY: mimalloc keeps the promises of `GlobalAlloc`, and no block of its is aligned to less than NATURAL.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size will do.
        unsafe {
            match layout.align() <= NATURAL {
                true => mimalloc::mi_malloc(layout.size()),
                false => mimalloc::mi_malloc_aligned(layout.size(), layout.align()),
            }
        }
        .cast()
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size will do.
        unsafe {
            match layout.align() <= NATURAL {
                true => mimalloc::mi_zalloc(layout.size()),
                false => mimalloc::mi_zalloc_aligned(layout.size(), layout.align()),
            }
        }
        .cast()
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: the caller has it from one of the others.
        unsafe { mimalloc::mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller has it from one of the others.
        unsafe {
            match layout.align() <= NATURAL {
                true => mimalloc::mi_realloc(block.cast(), size),
                false => mimalloc::mi_realloc_aligned(block.cast(), size, layout.align()),
            }
        }
        .cast()
    }
}

impl Allocator {
    /// Return to the system what this thread has freed, and what no thread has used for a while.
    ///
    /// mimalloc does it by itself only while it allocates: after a burst, an idle process would keep its peak.
    pub fn return_unused() {
        // SAFETY: it may be called at any time, and does nothing for a thread that has not allocated.
        unsafe { mi_collect(true) }
    }
}

/// What every block is aligned to: a machine word.
const NATURAL: usize = size_of::<usize>();
