// SPDX-License-Identifier: MIT OR Apache-2.0

//! A device's thread.
//!
//! The thread exists as long as the device. It waits for the driver's kicks,
//! for the device's own descriptors, and for orders of the transport. An order
//! is carried out between two pieces of work, and the transport waits until it
//! was: after a reset, nothing touches the guest's memory any more.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::backend::{Backend, Work};
use super::queue::Virtqueue;
use super::status::Status;

/// What the transport tells the worker.
enum Order {
    /// The driver is ready.
    Start { features: u64, queues: Vec<Option<Virtqueue>> },
    /// The driver takes one queue away.
    Drop(usize),
    /// The driver resets the device.
    Reset,
    /// The machine ends.
    End,
}

/// The worker of a device, as its transport has it.
pub struct Worker {
    status: Arc<Status>,
    orders: Sender<(Order, SyncSender<()>)>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. `kicks` has a descriptor for each queue.
    pub fn spawn(
        name: &str,
        backend: Box<dyn Backend>,
        kicks: Arc<[EventFd]>,
        status: Arc<Status>,
    ) -> io::Result<Worker> {
        let bell = Arc::new(event()?);
        let (orders, inbox) = channel();
        let state = State {
            events: Events::new(&*backend, &kicks, &bell)?,
            queues: kicks.iter().map(|_| None).collect(),
            pending: vec![false; kicks.len() + backend.sources().len()],
            running: false,
            backend,
            kicks,
            bell: Arc::clone(&bell),
            inbox,
            status: Arc::clone(&status),
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(|| state.work())?;
        Ok(Worker { status, orders, bell, thread: Some(thread) })
    }

    /// The driver is ready.
    pub fn start(&self, features: u64, queues: Vec<Option<Virtqueue>>) {
        self.order(Order::Start { features, queues });
    }

    /// The driver takes one queue away.
    pub fn drop_queue(&self, index: usize) {
        self.order(Order::Drop(index));
    }

    /// The driver resets the device.
    pub fn reset(&self) {
        self.order(Order::Reset);
    }

    /// Gives an order, and waits until it was carried out.
    fn order(&self, order: Order) {
        let (done, wait) = sync_channel(1);
        if matches!(order, Order::Reset | Order::End) {
            self.status.set_hurry(true);
        }
        // Both fail only if the thread has ended, and then nothing is left to do.
        if self.orders.send((order, done)).is_ok() && self.bell.write(1).is_ok() {
            let _ = wait.recv();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            // An error means that the thread has panicked, which has been reported.
            let _ = thread.join();
        }
    }
}

/// The descriptors that the worker waits for: each queue's kick, the device's
/// own, and the bell.
struct Events(Epoll);

impl Events {
    fn new(backend: &dyn Backend, kicks: &[EventFd], bell: &EventFd) -> io::Result<Events> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let input = EpollFlags::EPOLLIN;
        let both = input | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        let kicks = kicks.iter().map(|kick| (kick.as_fd(), input));
        let sources = backend.sources().into_iter().map(|source| (source, both));
        let all = kicks.chain(sources).chain([(bell.as_fd(), input)]);
        for (number, (descriptor, flags)) in (0..).zip(all) {
            epoll.add(descriptor, EpollEvent::new(flags, number))?;
        }
        Ok(Events(epoll))
    }

    /// The numbers of those that are ready; waits for one if `wait`.
    fn ready(&self, wait: bool) -> Vec<usize> {
        let mut events = [EpollEvent::empty(); 16];
        let timeout = if wait { EpollTimeout::NONE } else { EpollTimeout::ZERO };
        // The only possible error is EINTR.
        let count = self.0.wait(&mut events, timeout).unwrap_or(0);
        events[..count].iter().map(|event| event.data() as usize).collect()
    }
}

/// The thread's own.
struct State {
    backend: Box<dyn Backend>,
    kicks: Arc<[EventFd]>,
    queues: Vec<Option<Virtqueue>>,
    events: Events,
    /// Which queues, and after them which sources, have work.
    pending: Vec<bool>,
    /// Between the driver's start and its reset, and no rule was broken.
    running: bool,
    bell: Arc<EventFd>,
    inbox: Receiver<(Order, SyncSender<()>)>,
    status: Arc<Status>,
}

impl State {
    fn work(mut self) {
        loop {
            for number in self.events.ready(!self.pending.contains(&true)) {
                if let Some(kick) = self.kicks.get(number) {
                    // An error means that the eventfd has been read already.
                    let _ = kick.read();
                }
                match self.pending.get_mut(number) {
                    Some(pending) => *pending = true,
                    None => {
                        let _ = self.bell.read();
                    }
                }
            }
            while let Ok((order, done)) = self.inbox.try_recv() {
                let end = matches!(order, Order::End);
                self.carry_out(order);
                // The thread that gave the order waits for this.
                let _ = done.send(());
                if end {
                    return;
                }
            }
            for number in 0..self.pending.len() {
                if std::mem::take(&mut self.pending[number]) && self.running {
                    self.pending[number] = self.serve(number);
                }
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Start { features, queues } => {
                self.queues = queues;
                self.backend.start(features, Arc::clone(&self.status));
                self.running = true;
                // Drivers put buffers into queues before they start the device,
                // and descriptors may have become ready before, too.
                self.pending.fill(true);
            }
            Order::Drop(index) => {
                if let Some(queue) = self.queues.get_mut(index) {
                    *queue = None;
                }
            }
            Order::Reset | Order::End => {
                self.stop();
                self.status.set_hurry(false);
            }
        }
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            self.backend.stop();
        }
        self.queues.fill_with(|| None);
        self.pending.fill(false);
    }

    /// Does a share of the work; says whether there is more.
    fn serve(&mut self, number: usize) -> bool {
        let result = match number.checked_sub(self.kicks.len()) {
            None if self.queues[number].is_none() => Ok(Work::Done),
            None => self.backend.kicked(&mut self.queues, number),
            Some(source) => self.backend.ready(&mut self.queues, source),
        };
        let mut told = || self.queues.iter_mut().flatten().try_for_each(Virtqueue::notify);
        match result.and_then(|work| told().map(|()| work)) {
            Ok(work) => work == Work::More,
            Err(broken) => {
                self.stop();
                self.status.needs_reset(broken);
                false
            }
        }
    }
}

/// A descriptor that counts events, and never waits.
pub fn event() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}
