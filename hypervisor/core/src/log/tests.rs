// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

const SIZE: usize = 1024;

/// What a host reads from a position on: the text, and where it begins.
fn read_from<const N: usize>(log: &LogRing<N>, mut from: u64) -> (u64, Vec<u8>) {
    let mut begin = None;
    let mut text = Vec::new();
    loop {
        let [next, words @ ..] = log.read(from);
        let chunk = words.map(u64::to_le_bytes).concat();
        let length = chunk.iter().position(|&byte| byte == 0).unwrap_or(LOG_CHUNK);
        assert!(chunk[length..].iter().all(|&byte| byte == 0));
        begin.get_or_insert(next - length as u64);
        if length == 0 {
            return (begin.unwrap_or(next), text);
        }
        text.extend(&chunk[..length]);
        from = next;
    }
}

#[test]
fn a_line_is_one_line() {
    let text = |line: &Line| String::from_utf8_lossy(line.bytes()).into_owned();
    assert_eq!(text(&Line::new(format_args!("a {}", 1))), "a 1\n");
    assert_eq!(text(&Line::new(format_args!("a\nb\0c\r"))), "a?b?c?\n");
    let long = Line::new(format_args!("{}", "x".repeat(1000)));
    assert_eq!(long.bytes().len(), LINE_MAX);
    assert!(long.bytes().ends_with(b"x\n"));
}

#[test]
fn positions_may_be_anything() {
    let log = LogRing::<SIZE>::new();
    for from in [0, 1, 1 << 40, u64::MAX] {
        assert_eq!(log.read(from), [0; 4]);
    }
    log.push(&Line::new(format_args!("hello")));
    assert_eq!(read_from(&log, 0), (0, b"hello\n".to_vec()));
    assert_eq!(read_from(&log, 3), (3, b"lo\n".to_vec()));
    for from in [6, 7, u64::MAX] {
        assert_eq!(log.read(from), [6, 0, 0, 0], "nothing yet from {from}");
    }
}

proptest! {
    /// The log against a queue of whole lines.
    #[test]
    fn the_oldest_lines_go_as_a_whole(
        lines in prop::collection::vec("[ -~]{0,300}", 1..40),
        looks in prop::collection::vec(0u64..12_000, 1..8),
    ) {
        let log = LogRing::<SIZE>::new();
        let mut kept: VecDeque<Vec<u8>> = VecDeque::new();
        let mut all = Vec::new();
        for text in &lines {
            let line = Line::new(format_args!("{text}"));
            log.push(&line);
            all.extend(line.bytes());
            kept.push_back(line.bytes().to_vec());
            while kept.iter().map(Vec::len).sum::<usize>() > SIZE {
                kept.pop_front();
            }
            let text: Vec<u8> = kept.iter().flatten().copied().collect();
            let start = all.len() - text.len();
            prop_assert_eq!(read_from(&log, 0), (start as u64, text.clone()));
            for &look in &looks {
                let from = (look as usize).clamp(start, all.len());
                prop_assert_eq!(read_from(&log, look), (from as u64, all[from..].to_vec()));
            }
        }
    }
}

#[test]
fn cpus_write_and_a_host_reads() {
    // From each line a reader can tell whether it is whole.
    let log = LogRing::<SIZE>::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|cpu| {
                let log = &log;
                scope.spawn(move || {
                    for n in 0..3000 {
                        let fill = "x".repeat(n % 90);
                        log.push(&Line::new(format_args!("<{cpu} {n} {fill} {n} {cpu}>")));
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let (mut from, mut line, mut next, mut seen) = (0, Vec::new(), [0; 3], 0);
            loop {
                // Read this flag before the log, so that the last turn sees all lines.
                let is_last = done.load(Ordering::Relaxed);
                let [to, words @ ..] = log.read(from);
                let chunk = words.map(u64::to_le_bytes).concat();
                let chunk: Vec<u8> = chunk.into_iter().take_while(|&byte| byte != 0).collect();
                // Lines were lost: the read continues at the start of a line.
                if to - chunk.len() as u64 != from {
                    line.clear();
                }
                if is_last && chunk.is_empty() {
                    break;
                }
                from = to;
                for byte in chunk {
                    if byte != b'\n' {
                        line.push(byte);
                        continue;
                    }
                    let [cpu, n] = whole(&line);
                    assert!(n >= next[cpu], "in order");
                    next[cpu] = n + 1;
                    line.clear();
                    seen += 1;
                }
            }
            seen
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    let (_, text) = read_from(&log, 0);
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).for_each(|line| {
        whole(line);
    });
}

/// The numbers of a line that says them twice, at its begin and at its end.
fn whole(line: &[u8]) -> [usize; 2] {
    let line = std::str::from_utf8(line).unwrap();
    let inner = line.strip_prefix('<').and_then(|line| line.strip_suffix('>'));
    let words: Vec<&str> = inner.map_or(Vec::new(), |inner| inner.split(' ').collect());
    let &[cpu, n, _, same_n, same_cpu] = words.as_slice() else { panic!("torn: {line:?}") };
    assert_eq!((cpu, n), (same_cpu, same_n), "torn: {line:?}");
    [cpu.parse().unwrap(), n.parse().unwrap()]
}
