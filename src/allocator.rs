//! Memory allocator of the program: mimalloc, given an alignment only where one is needed.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mimalloc;

unsafe extern "C" {
    /// Free cached memory. The crate declares it together with a hundred others that need one more
    /// crate.
    fn mi_collect(force: bool);
}

/// mimalloc as a `#[global_allocator]`.
///
/// The crate `mimalloc` passes an alignment with every request, which takes three times as many
/// instructions as a request without; a visitor's request makes eighty allocations in each process.
pub struct Allocator;

// SAFETY: mimalloc meets `GlobalAlloc`'s contract, and aligns every block to at least NATURAL_ALIGNMENT.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size is valid.
        unsafe {
            match layout.align() <= NATURAL_ALIGNMENT {
                true => mimalloc::mi_malloc(layout.size()),
                false => mimalloc::mi_malloc_aligned(layout.size(), layout.align()),
            }
        }
        .cast()
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size is valid.
        unsafe {
            match layout.align() <= NATURAL_ALIGNMENT {
                true => mimalloc::mi_zalloc(layout.size()),
                false => mimalloc::mi_zalloc_aligned(layout.size(), layout.align()),
            }
        }
        .cast()
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: the caller got the block from one of the other functions.
        unsafe { mimalloc::mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller got the block from one of the other functions.
        unsafe {
            match layout.align() <= NATURAL_ALIGNMENT {
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
    /// mimalloc does so by itself only while it allocates: after a burst, an idle process would
    /// keep its peak.
    pub fn return_unused() {
        // SAFETY: it may be called at any time, and does nothing for a thread that has not
        // allocated.
        unsafe { mi_collect(true) }
    }
}

/// Alignment of every block, in bytes: a machine word.
const NATURAL_ALIGNMENT: usize = size_of::<usize>();
