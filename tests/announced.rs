//! A peer that announces much and sends little must not make the other end reserve memory for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use qtunnel::proto::{
    AgentMessage, BodyDecoder, EdgeMessage, Fields, HELLO_LIMIT, ResponseHead, Splitter, decode,
};

#[test]
fn an_announced_message_reserves_little() {
    let reserved = largest_allocation(|| {
        let mut splitter = Splitter::default();
        // The hello's limit is announced, and one byte of it sent.
        splitter.push(&[0x80, 0, 0x80, 0, 0]);
        assert_eq!(splitter.next(HELLO_LIMIT), Ok(None));
    });
    assert!(reserved <= HELLO_LIMIT / 4, "{reserved} bytes");
}

#[test]
fn an_announced_list_of_fields_reserves_little() {
    let reserved = largest_allocation(|| {
        assert!(decode::<Fields>(&MANY).is_err());
        assert!(decode::<ResponseHead>(&[&[0, 103], &MANY[..]].concat()).is_err());
    });
    assert!(reserved <= 16 << 10, "{reserved} bytes");
}

#[test]
fn an_announced_text_reserves_nothing() {
    let reserved = largest_allocation(|| {
        // A notice, a token, and a reason phrase that are said to be long.
        assert!(decode::<EdgeMessage>(&[&[5], &MANY[..]].concat()).is_err());
        assert!(decode::<AgentMessage>(&[&[0], &MANY[..]].concat()).is_err());
        assert!(decode::<ResponseHead>(&[&[1, 200, 1, 1], &MANY[..]].concat()).is_err());
    });
    assert!(reserved <= 1 << 10, "{reserved} bytes");
}

#[test]
fn an_announced_list_of_tunnels_reserves_little() {
    let mut hello = vec![0, 0];
    hello.extend([7; 16]);
    hello.extend([1, 0]);
    hello.extend(MANY);
    let reserved = largest_allocation(|| {
        assert!(decode::<AgentMessage>(&hello).is_err());
    });
    assert!(reserved <= 16 << 10, "{reserved} bytes");
}

#[test]
fn an_announced_frame_reserves_nothing() {
    let frame = Bytes::from_static(&[0xff; 8]);
    let reserved = largest_allocation(|| {
        let mut decoder = BodyDecoder::new(frame);
        assert_eq!(decoder.next_frame(), Ok(None));
    });
    assert_eq!(reserved, 0);
}

/// 2^28 - 1 of whatever follows.
const MANY: [u8; 4] = [0xff, 0xff, 0xff, 0x7f];

/// Run something, and return the size of the largest allocation that it made.
fn largest_allocation(run: impl FnOnce()) -> usize {
    LARGEST.set(0);
    run();
    LARGEST.get()
}

struct Measured;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Measured = Measured;

// SAFETY: all of it is left to the system's allocator.
unsafe impl GlobalAlloc for Measured {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // It fails only while the thread ends.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
        unsafe { System.realloc(pointer, layout, size) }
    }
}
