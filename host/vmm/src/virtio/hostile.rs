// SPDX-License-Identifier: MIT OR Apache-2.0

//! Drivers that do anything at all, and take memory away while it is in use: devices live on, and
//! touch nothing that they were not given.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VRING_DESC_F_INDIRECT;

use super::backend::Backend;
use super::block::Block;
use super::console::Console;
use super::door::Door;
use super::driver::*;
use super::entropy::Entropy;
use super::net::{Net, Passt};
use super::vsock::Vsock;
use crate::machine::MmioDevice;

const SIZE: u16 = 16;
/// Memory that no descriptor lets a device write.
const UNTOUCHED: u64 = RAM + (8 << 20);
const UNTOUCHED_SIZE: usize = 64 << 10;
/// Where indirect tables are.
const TABLES: u64 = BUFFERS + 0x20000;

/// What a driver does.
#[derive(Clone, Debug)]
enum Action {
    /// Writes a descriptor into a queue's table, or into one that others refer
    /// to.
    Describe {
        queue: usize,
        indirect: bool,
        index: u16,
        desc: Desc,
    },
    /// Writes bytes where the buffers are: headers of requests.
    Fill {
        address: u64,
        bytes: Vec<u8>,
    },
    /// Makes a descriptor available.
    Offer {
        queue: usize,
        head: u16,
    },
    /// Says that many are available.
    Available {
        queue: usize,
        index: u16,
    },
    Kick {
        queue: usize,
    },
    /// Writes a register.
    Register {
        offset: u32,
        value: u32,
    },
    /// Accesses any place by any width.
    Access {
        offset: u64,
        width: usize,
        value: u64,
        write: bool,
    },
    /// Takes a page away from the device.
    TakeBack {
        page: u64,
    },
    /// Gives it back.
    Share {
        page: u64,
    },
    /// Resets and starts again.
    Restart {
        features: u64,
    },
}

/// Addresses inside memory, at its ends, and anywhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..0x10000u64).prop_map(|at| BUFFERS + at),
        2 => (0..0x400u64).prop_map(|at| TABLES + at / 16 * 16),
        1 => (0..64u64).prop_map(|at| RAM - at),
        1 => (0..64u64).prop_map(|at| RAM + RAM_SIZE - at),
        1 => any::<u64>(),
    ]
}

fn desc() -> impl Strategy<Value = Desc> {
    let length = prop_oneof![
        3 => Just(16u32),
        2 => Just(1),
        2 => Just(44),
        4 => (0..4u32).prop_map(|sectors| sectors * 512),
        2 => 0..0x8000u32,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        6 => 0..4u16,
        1 => Just(VRING_DESC_F_INDIRECT as u16),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![4 => 0..SIZE, 1 => any::<u16>()];
    (address(), length, flags, next).prop_map(|(address, length, flags, next)| Desc {
        address,
        length,
        flags,
        next,
    })
}

/// Pages of queues, tables and buffers.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => (0..3u64, 0..4u64).prop_map(|(queue, part)| RAM + queue * 0x1_0000 + part * 0x4000),
        1 => (0..0x22u64).prop_map(|page| BUFFERS + page * PAGE),
    ]
}

fn action(queues: usize) -> impl Strategy<Value = Action> {
    let queue = 0..queues;
    let header = prop_oneof![
        3 => (0..16u8, 0..3u8).prop_map(|(kind, sector)| {
            let mut header = vec![0; 16];
            (header[0], header[8]) = (kind, sector);
            header
        }),
        // A packet for a socket device: from 3 to 2, of a stream.
        2 => (0..2u8, 0..2u8, 0..64u8, 0..9u8, any::<u8>()).prop_map(
            |(from, to, length, operation, flags)| {
                let mut header = vec![0; 44];
                (header[0], header[8], header[16], header[20]) = (3, 2, from, to);
                (header[24], header[28], header[30]) = (length, 1, operation);
                (header[32], header[38]) = (flags, 1);
                header
            },
        ),
        1 => vec(any::<u8>(), 1..64),
    ];
    prop_oneof![
        8 => (queue.clone(), any::<bool>(), 0..SIZE, desc()).prop_map(
            |(queue, indirect, index, desc)| Action::Describe { queue, indirect, index, desc }
        ),
        4 => ((0..0x800u64), header)
            .prop_map(|(at, bytes)| Action::Fill { address: BUFFERS + at / 16 * 16, bytes }),
        6 => (queue.clone(), prop_oneof![9 => 0..SIZE, 1 => any::<u16>()])
            .prop_map(|(queue, head)| Action::Offer { queue, head }),
        1 => (queue.clone(), any::<u16>())
            .prop_map(|(queue, index)| Action::Available { queue, index }),
        6 => queue.prop_map(|queue| Action::Kick { queue }),
        2 => (0..0x100u32, prop_oneof![0..0x100u32, any::<u32>()])
            .prop_map(|(offset, value)| Action::Register { offset: offset / 4 * 4, value }),
        1 => (
            prop_oneof![4 => 0..0x200u64, 1 => any::<u64>()],
            prop_oneof![Just(1usize), Just(2), Just(4), Just(8)],
            any::<u64>(),
            any::<bool>(),
        )
            .prop_map(|(offset, width, value, write)| Action::Access {
                offset,
                width,
                value,
                write,
            }),
        2 => page().prop_map(|page| Action::TakeBack { page }),
        3 => page().prop_map(|page| Action::Share { page }),
        2 => prop_oneof![Just(PLAIN), Just(PLAIN | INDIRECT), Just(PLAIN | INDIRECT | EVENTS)]
            .prop_map(|features| Action::Restart { features }),
    ]
}

/// Does all that, and then looks whether the device still works.
fn play(backend: impl Backend + 'static, actions: &[Action], works: impl FnOnce(&mut Driver)) {
    let mut driver = Driver::new(backend);
    let untouched = (0..UNTOUCHED_SIZE).map(|at| (at / 3) as u8).collect::<Vec<_>>();
    driver.put(UNTOUCHED, &untouched);
    driver.start(PLAIN | INDIRECT | EVENTS, SIZE);
    for action in actions {
        match action.clone() {
            Action::Describe { queue, indirect, index, desc } => {
                let table = if indirect { TABLES } else { driver.table(queue) };
                driver.descriptor(table, index, desc);
            }
            Action::Fill { address, bytes } => driver.put(address, &bytes),
            Action::Offer { queue, head } => driver.offer(queue, head),
            Action::Available { queue, index } => driver.set_available(queue, index),
            Action::Kick { queue } => driver.kick(queue),
            Action::Register { offset, value } => driver.set(offset, value),
            Action::Access { offset, width, value, write: true } => {
                driver.device.write(offset, &value.to_le_bytes()[..width]);
            }
            Action::Access { offset, width, .. } => {
                driver.device.read(offset, &mut [0; 8][..width]);
            }
            Action::TakeBack { page } => driver.take_back(page, 1),
            Action::Share { page } => driver.share(page, 1),
            Action::Restart { features } => driver.start(features, SIZE),
        }
    }
    // Kick all queues once more at the end.
    for queue in 0..driver.device.kicks().len() {
        driver.kick(queue);
        driver.set(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
    }
    assert!(driver.get(UNTOUCHED, UNTOUCHED_SIZE) == untouched, "the device wrote elsewhere");
    driver.share(RAM, RAM_SIZE / PAGE);
    driver.start(PLAIN | INDIRECT | EVENTS, SIZE);
    works(&mut driver);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_survives_its_driver(actions in vec(action(1), 1..80)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let contents = vec![0x5a; 4 * 512];
        file.as_file().write_all_at(&contents, 0).unwrap();
        // The disk is read-only, so its contents must not change.
        let disk = Block::open("disk0", file.path(), true, "").unwrap();
        play(disk, &actions, |driver| {
            driver.put(BUFFERS, &[0; 16]);
            let chain = [read(BUFFERS, 16), write(BUFFERS + 0x200, 512), write(BUFFERS, 1)];
            assert_eq!(driver.transfer(0, &chain), 513);
            assert_eq!(driver.get(BUFFERS + 0x200, 512), [0x5a; 512]);
        });
        prop_assert!(std::fs::read(file.path()).unwrap() == contents);
    }

    #[test]
    fn entropy_survives_its_driver(actions in vec(action(1), 1..80)) {
        play(Entropy, &actions, |driver| {
            assert_eq!(driver.transfer(0, &[write(BUFFERS, 64)]), 64);
        });
    }

    #[test]
    fn a_network_device_survives_its_driver(actions in vec(action(2), 1..80)) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let net = Net::new("net0", [2; 6], Box::new(Passt::connected(ours).unwrap()));
        // Another thread sends frames all the time.
        let frame = [&100u32.to_be_bytes()[..], &[0; 100]].concat();
        let (mut reader, mut writer) = (theirs.try_clone().unwrap(), theirs);
        let _ = writer.write(&frame.repeat(50));
        play(net, &actions, |driver| {
            let _ = reader.read(&mut vec![0; 1 << 20]);
            driver.transfer(1, &[read(BUFFERS, 100)]);
            driver.add(0, &[write(BUFFERS, 0x20000)]);
            driver.kick(0);
            let _ = writer.write(&frame);
            assert_eq!(driver.wait(|driver| driver.used(0)).1, 112);
        });
    }

    #[test]
    fn a_console_survives_its_driver(actions in vec(action(2), 1..80)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hvc0");
        let console = Console::new(Arc::new(Door::open(&path).unwrap())).unwrap();
        let mut theirs = UnixStream::connect(&path).unwrap();
        theirs.write_all(&[b'x'; 200]).unwrap();
        play(console, &actions, |driver| {
            driver.transfer(1, &[read(BUFFERS, 1)]);
            theirs.write_all(b"y").unwrap();
            driver.add(0, &[write(BUFFERS, 256)]);
            driver.kick(0);
            assert_ne!(driver.wait(|driver| driver.used(0)).1, 0);
        });
    }

    #[test]
    fn a_socket_device_survives_its_driver(actions in vec(action(3), 1..80)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        // Some of the driver's headers are for the port of this listener.
        let _listener = UnixListener::bind(directory.path().join("vsock_0")).unwrap();
        let waits = Vsock::new(3, Arc::new(Door::open(&path).unwrap())).unwrap();
        let mut host = UnixStream::connect(&path).unwrap();
        host.write_all(b"CONNECT 9\n").unwrap();
        play(waits, &actions, |driver| {
            // An answer to a packet of no connection.
            let header = [&[3, 0, 0, 0, 0, 0, 0, 0, 2][..], &[0; 19], &[1, 0, 5], &[0; 13]].concat();
            driver.put(BUFFERS, &header);
            driver.transfer(1, &[read(BUFFERS, 44)]);
            driver.add(0, &[write(BUFFERS, 256)]);
            driver.kick(0);
            assert_eq!(driver.wait(|driver| driver.used(0)).1, 44);
        });
    }
}
