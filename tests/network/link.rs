//! A link with a delay and a rate between two namespaces: a TUN device at each end, and threads that
//! carry packets from one to the other.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use crate::space::Space;

/// What a link does to packets, either way.
#[derive(Clone, Copy)]
pub struct Link {
    pub delay: Duration,
    /// In bits per second.
    pub rate: u64,
}

impl Link {
    /// Lay it. The devices are named `wire`; the link ends when one of them is removed.
    pub fn lay(self, near: &Space, far: &Space) {
        let (near, far) = (near.entrance().enter(open), far.entrance().enter(open));
        let ends = (
            near.try_clone().expect("a descriptor"),
            far.try_clone().expect("a descriptor"),
        );
        self.carry(near, ends.1);
        self.carry(far, ends.0);
    }

    /// Carry packets in one direction. The threads end when their device is gone.
    fn carry(self, mut from: File, mut to: File) {
        let (sender, travelling) = mpsc::channel::<(Instant, Vec<u8>)>();
        thread::spawn(move || {
            let mut packet = [0; MTU];
            let mut busy_until = Instant::now();
            while let Ok(length) = from.read(&mut packet) {
                let now = Instant::now();
                let turn = busy_until.max(now);
                if turn > now + QUEUE {
                    continue;
                }
                busy_until = turn + Duration::from_secs(length as u64 * 8) / self.rate as u32;
                let arrives = (busy_until + self.delay, packet[..length].to_vec());
                if sender.send(arrives).is_err() {
                    return;
                }
            }
        });
        thread::spawn(move || {
            for (due, packet) in travelling {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // A device that is down loses what is sent to it.
                let _ = to.write(&packet);
            }
        });
    }
}

fn open() -> File {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("TUN devices");
    // SAFETY: all bits zero are a valid `ifreq`, which is a C struct of numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads an `ifreq` and writes the device's name back into it.
    unsafe { tunsetiff(device.as_raw_fd(), &raw mut request) }.expect("a TUN device");
    device
}

mod ioctl {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(
        /// Make this descriptor a TUN device.
        tunsetiff,
        libc::TUNSETIFF,
        libc::ifreq
    );
}

use ioctl::tunsetiff;

const NAME: &str = "wire";

/// Of Ethernet.
const MTU: usize = 1500;

/// How long packets may wait for their turn.
const QUEUE: Duration = Duration::from_millis(100);
