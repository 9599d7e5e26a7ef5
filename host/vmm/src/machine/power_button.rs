// SPDX-License-Identifier: MIT OR Apache-2.0

//! The power button: a PL061 (DDI 0190B) with a button at one of its eight
//! lines, by which the host asks a guest to power off.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::{InterruptLine, MmioDevice};

/// The line that the button is at.
pub const LINE: u32 = 3;
const BUTTON: u8 = 1 << LINE;
/// How long the button is held: drivers wait some milliseconds until it has
/// settled.
const HELD: Duration = Duration::from_millis(100);

/// Registers, in bytes from the first. Below is the data register, at 256
/// addresses whose bits 2 to 9 are a mask of lines.
mod register {
    pub const DIRECTION: u64 = 0x400;
    pub const SENSE: u64 = 0x404;
    pub const BOTH_EDGES: u64 = 0x408;
    pub const EVENT: u64 = 0x40c;
    pub const MASK: u64 = 0x410;
    pub const RAW_STATUS: u64 = 0x414;
    pub const MASKED_STATUS: u64 = 0x418;
    pub const CLEAR: u64 = 0x41c;
    pub const ALTERNATE: u64 = 0x420;
    pub const IDENTITY: u64 = 0xfe0;
}
/// The identification registers, four bytes apart.
const IDENTITY: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

#[derive(Default)]
struct Lines {
    /// What the button does to its line.
    input: u8,
    /// What the guest has written to lines that are outputs.
    output: u8,
    direction: u8,
    sense: u8,
    both_edges: u8,
    event: u8,
    mask: u8,
    alternate: u8,
    /// Edges that were seen.
    edges: u8,
}

impl Lines {
    fn levels(&self) -> u8 {
        (self.input & !self.direction) | (self.output & self.direction)
    }

    /// What interrupts, without the mask.
    fn raw(&self) -> u8 {
        let active = !(self.levels() ^ self.event);
        (self.sense & active) | (!self.sense & self.edges)
    }

    fn masked(&self) -> u8 {
        self.raw() & self.mask
    }

    fn change(&mut self, change: impl FnOnce(&mut Lines)) {
        let before = self.levels();
        change(self);
        let changed = before ^ self.levels();
        let wanted = self.both_edges | !(self.levels() ^ self.event);
        self.edges |= changed & wanted & !self.sense;
    }
}

/// What the guest's device and the host's end of the button share.
struct Common {
    lines: Mutex<Lines>,
    interrupt: Box<dyn InterruptLine>,
}

impl Common {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        // A panic leaves the lines consistent: each change is one assignment.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the lines, and interrupts the guest if something new does.
    fn change(&self, change: impl FnOnce(&mut Lines)) -> io::Result<()> {
        let mut lines = self.lines();
        let before = lines.masked();
        lines.change(change);
        let new = lines.masked() & !before;
        drop(lines);
        if new != 0 { self.interrupt.trigger() } else { Ok(()) }
    }
}

/// The guest's device.
pub struct Gpio(Arc<Common>);

/// The host's end.
#[derive(Clone)]
pub struct PowerButton(Arc<Common>);

/// A button and its device; `interrupt` is the device's.
pub fn new(interrupt: Box<dyn InterruptLine>) -> (Gpio, PowerButton) {
    let common = Arc::new(Common { lines: Mutex::default(), interrupt });
    (Gpio(Arc::clone(&common)), PowerButton(common))
}

impl PowerButton {
    /// Presses it, and lets go after a while.
    pub fn press(&self) -> io::Result<()> {
        self.0.change(|lines| lines.input |= BUTTON)?;
        let common = Arc::clone(&self.0);
        let release = move || {
            thread::sleep(HELD);
            // An error means that the guest has ended.
            let _ = common.change(|lines| lines.input &= !BUTTON);
        };
        thread::Builder::new().name("power-button".into()).spawn(release).map(drop)
    }
}

impl MmioDevice for Gpio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let lines = self.0.lines();
        let value = match offset {
            0..register::DIRECTION => lines.levels() & (offset >> 2) as u8,
            register::DIRECTION => lines.direction,
            register::SENSE => lines.sense,
            register::BOTH_EDGES => lines.both_edges,
            register::EVENT => lines.event,
            register::MASK => lines.mask,
            register::RAW_STATUS => lines.raw(),
            register::MASKED_STATUS => lines.masked(),
            register::ALTERNATE => lines.alternate,
            register::IDENTITY.. => {
                let index = (offset - register::IDENTITY) / 4;
                IDENTITY.get(index as usize).copied().unwrap_or(0)
            }
            _ => 0,
        };
        if let Some(first) = data.first_mut() {
            *first = value;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        // If the interrupt cannot be raised, the guest misses it: nothing else fails.
        let _ = self.0.change(|lines| match offset {
            0..register::DIRECTION => {
                let mask = (offset >> 2) as u8;
                lines.output = (lines.output & !mask) | (value & mask);
            }
            register::DIRECTION => lines.direction = value,
            register::SENSE => lines.sense = value,
            register::BOTH_EDGES => lines.both_edges = value,
            register::EVENT => lines.event = value,
            register::MASK => lines.mask = value,
            register::CLEAR => lines.edges &= !value,
            register::ALTERNATE => lines.alternate = value,
            _ => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use super::*;

    #[derive(Clone, Default)]
    struct Counter(Arc<AtomicU32>);

    impl InterruptLine for Counter {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    impl Counter {
        fn get(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn read(gpio: &mut Gpio, offset: u64) -> u8 {
        let mut data = [0; 4];
        gpio.read(offset, &mut data);
        assert_eq!(data[1..], [0; 3]);
        data[0]
    }

    fn write(gpio: &mut Gpio, offset: u64, value: u8) {
        gpio.write(offset, &[value, 0, 0, 0]);
    }

    /// The button's level, by the data register with a mask of one line.
    const AT_BUTTON: u64 = (BUTTON as u64) << 2;

    #[test]
    fn a_press_is_two_edges() {
        let counter = Counter::default();
        let (mut gpio, button) = new(Box::new(counter.clone()));
        // As Linux sets it up for gpio-keys.
        write(&mut gpio, register::BOTH_EDGES, BUTTON);
        write(&mut gpio, register::MASK, BUTTON);
        button.0.change(|lines| lines.input = BUTTON).unwrap();
        assert_eq!((counter.get(), read(&mut gpio, register::MASKED_STATUS)), (1, BUTTON));
        let others = u64::from(!BUTTON) << 2;
        assert_eq!((read(&mut gpio, AT_BUTTON), read(&mut gpio, others)), (BUTTON, 0));
        write(&mut gpio, register::CLEAR, 0xff);
        assert_eq!(read(&mut gpio, register::RAW_STATUS), 0);
        button.0.change(|lines| lines.input = 0).unwrap();
        assert_eq!((counter.get(), read(&mut gpio, AT_BUTTON)), (2, 0));
        write(&mut gpio, register::CLEAR, 0xff);

        // The rising edge is there at once, the falling one follows.
        button.press().unwrap();
        assert!(counter.get() >= 3);
        let until = Instant::now() + Duration::from_secs(60);
        while read(&mut gpio, AT_BUTTON) != 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(read(&mut gpio, AT_BUTTON), 0);
    }

    #[test]
    fn one_edge_and_levels() {
        let counter = Counter::default();
        let (mut gpio, button) = new(Box::new(counter.clone()));
        let set = |level: bool| {
            button.0.change(|lines| lines.input = if level { BUTTON } else { 0 }).unwrap();
        };
        // Rising edges; masked ones are remembered.
        write(&mut gpio, register::EVENT, BUTTON);
        set(true);
        set(false);
        assert_eq!((counter.get(), read(&mut gpio, register::RAW_STATUS)), (0, BUTTON));
        write(&mut gpio, register::MASK, BUTTON);
        assert_eq!(counter.get(), 1);
        write(&mut gpio, register::CLEAR, BUTTON);
        // A level interrupt stays pending as long as the line is high.
        write(&mut gpio, register::SENSE, BUTTON);
        set(true);
        write(&mut gpio, register::CLEAR, BUTTON);
        assert_eq!((counter.get(), read(&mut gpio, register::MASKED_STATUS)), (2, BUTTON));
        set(false);
        assert_eq!(read(&mut gpio, register::MASKED_STATUS), 0);
        // The button does nothing to a line that is an output.
        write(&mut gpio, register::DIRECTION, BUTTON);
        set(true);
        assert_eq!(read(&mut gpio, AT_BUTTON), 0);
        write(&mut gpio, AT_BUTTON, 0xff);
        assert_eq!(read(&mut gpio, 0x3fc), BUTTON);
    }

    #[test]
    fn every_access_has_an_answer() {
        let (mut gpio, _button) = new(Box::new(Counter::default()));
        let id: Vec<u8> = (0..8).map(|n| read(&mut gpio, 0xfe0 + 4 * n)).collect();
        assert_eq!(id, IDENTITY);
        for offset in 0..0x1000 {
            for size in [1, 2, 4, 8] {
                gpio.write(offset, &[0xff; 8][..size]);
                gpio.read(offset, &mut [0; 8][..size]);
            }
        }
    }
}
