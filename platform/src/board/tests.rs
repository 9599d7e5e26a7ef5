// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::sample::{KERNEL, MODULE, RAMDISK, Sample};
use crate::uart::Spacing;

fn read(sample: &Sample) -> Result<(), BoardError> {
    Board::read(&Outline::of(&Fdt::new(&sample.tree()).unwrap())).map(drop)
}

#[test]
fn a_whole_board() {
    let blob = Sample::default().tree();
    let fdt = Fdt::new(&blob).unwrap();
    let board = Board::read(&Outline::of(&fdt)).unwrap();
    assert_eq!(board.model, b"sample");
    assert_eq!(board.ram.as_slice(), [Range::new(0x4000_0000, 0x8000_0000)]);
    assert_eq!(
        board.reserved.as_slice(),
        [
            Range::new(0x5000_0000, 0x5020_0000),
            Range::new(0x5100_0000, 0x5100_1000),
            Range::new(0x5200_0000, 0x5200_2000),
        ]
    );
    assert_eq!(board.withheld.as_slice(), [Range::new(0x5000_0000, 0x5020_0000)]);
    assert_eq!(board.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 1, 0x100, 0x101]);
    assert_eq!(board.gic.distributor, Range::new(0x8800_0000, 0x8801_0000));
    assert_eq!(
        board.gic.redistributors.as_slice(),
        [Range::new(0x880a_0000, 0x882a_0000), Range::new(0x8900_0000, 0x8920_0000)]
    );
    assert_eq!(board.kernel.range, Range::new(0x4400_0000, 0x4600_0000));
    assert_eq!(board.kernel.arguments, b"console=ttyAMA0 quiet");
    let ramdisk = board.ramdisk.unwrap();
    assert_eq!(ramdisk.range, Range::new(0x4c00_0000, 0x4c10_0000));
    assert_eq!(ramdisk.arguments, b"");
    assert_eq!(Outline::of(&fdt).own_arguments(), b"loglevel=debug");
}

#[test]
fn only_what_nobody_refers_to_is_withheld() {
    let reserved = vec![
        (0x5000_0000, 0x20_0000, true),
        (0x5100_0000, 0x1000, true),
        (0x5180_0000, 0x1000, false),
        // In the first one.
        (0x5008_0000, 0x800, true),
    ];
    let referred = vec![0x5100_0000, 0x5008_0000];
    let blob = Sample { reserved, referred, ..Sample::default() }.tree();
    let board = Board::read(&Outline::of(&Fdt::new(&blob).unwrap())).unwrap();
    let withheld = [Range::new(0x5000_0000, 0x5008_0000), Range::new(0x5008_1000, 0x5020_0000)];
    assert_eq!(board.withheld.as_slice(), withheld);
    for at in [0x5000_0000, 0x5008_0000, 0x5100_0000, 0x5180_0000] {
        let page = Range::new(at, at + 0x800);
        assert!(board.reserved.contains(&page), "{page} stays where it is");
    }
}

#[test]
fn the_console_is_the_chosen_one_or_the_first() {
    let find = |stdout| {
        let blob = Sample { stdout, ..Sample::default() }.tree();
        Console::find(&Outline::of(&Fdt::new(&blob).unwrap()))
            .map(|console| console.registers.start)
    };
    assert_eq!(find(Some("/soc/bus@9000000/serial@10000:115200n8")), Some(0x8901_0000));
    assert_eq!(find(Some("serial0:115200")), Some(0x8901_0000));
    // Not a UART, not there, disabled, not named at all.
    for stdout in [Some("/psci"), Some("/x"), Some("/soc/serial@0"), Some(""), None] {
        assert_eq!(find(stdout), Some(0x8901_0000), "{stdout:?}");
    }
}

#[test]
fn a_16550_is_a_console_if_its_registers_are_bytes_or_words() {
    let find = |compatible: &str, shift: u32, width: u32| {
        let write = || -> Result<Vec<u8>, vm_fdt::Error> {
            let mut fdt = vm_fdt::FdtWriter::new()?;
            let root = fdt.begin_node("")?;
            fdt.property_u32("#address-cells", 2)?;
            fdt.property_u32("#size-cells", 2)?;
            let serial = fdt.begin_node("serial@ff1a0000")?;
            fdt.property_string("compatible", compatible)?;
            fdt.property_array_u64("reg", &[0xff1a_0000, 0x1000])?;
            fdt.property_u32("reg-shift", shift)?;
            fdt.property_u32("reg-io-width", width)?;
            fdt.end_node(serial)?;
            fdt.end_node(root)?;
            fdt.finish()
        };
        let blob = write().unwrap();
        Console::find(&Outline::of(&Fdt::new(&blob).unwrap()))
            .map(|console| (console.registers.start, console.kind))
    };
    let spaced = |shift, width| UartKind::Ns16550(Spacing::new(shift, width).unwrap());
    let at = 0xff1a_0000;
    assert_eq!(find("snps,dw-apb-uart", 2, 4), Some((at, spaced(2, 4))));
    assert_eq!(find("ns16550a", 0, 1), Some((at, spaced(0, 1))));
    assert_eq!(find("arm,pl011", 2, 4), Some((at, UartKind::Pl011)));
    assert_eq!(find("ns16550a", 1, 2), None);
    assert_eq!(find("ns16550a", 12, 1), None);
    assert_eq!(find("acme,uart", 0, 1), None);
}

#[test]
fn memory_may_come_in_pieces_but_not_be_absent() {
    let memory =
        vec![0x8000_0000, 0x1000, 0, 0, 0x4000_0000, 0x4000_0000, u64::MAX, 0x2000, 0x9000_0000, 0];
    let blob = Sample { memory, ..Sample::default() }.tree();
    let board = Board::read(&Outline::of(&Fdt::new(&blob).unwrap())).unwrap();
    assert_eq!(board.ram.as_slice(), [Range::new(0x4000_0000, 0x8000_1000)]);
    for memory in [vec![], vec![0, 0]] {
        assert_eq!(read(&Sample { memory, ..Sample::default() }), Err(BoardError::NoMemory));
    }
    let memory = (0..MAX_RAM as u64 + 1).flat_map(|n| [n << 30, 4096]).collect();
    let many = read(&Sample { memory, ..Sample::default() });
    assert_eq!(many, Err(BoardError::TooMany(MAX_RAM, "ranges of memory")));
}

#[test]
fn what_is_missing_is_named() {
    let gic = "arm,cortex-a15-gic";
    assert_eq!(read(&Sample { gic, ..Sample::default() }), Err(BoardError::NoGicv3));
    assert_eq!(read(&Sample { psci: None, ..Sample::default() }), Err(BoardError::NoPsci));
    let psci = |compatible, method| {
        read(&Sample { psci: Some((compatible, method)), ..Sample::default() })
    };
    assert_eq!(psci(&["arm,psci"], "smc"), Err(BoardError::NoPsci));
    assert_eq!(psci(&["arm,psci-0.2"], "smc"), Ok(()));
    assert_eq!(psci(&["arm,psci-1.0"], "hvc"), Err(BoardError::PsciByHvc));
    assert_eq!(psci(&["arm,psci-1.0"], "fax"), Err(BoardError::NoPsci));
    assert_eq!(read(&Sample { cpus: vec![], ..Sample::default() }), Err(BoardError::NoCpus));
    let cpus = (0..=MAX_CPUS as u64).collect();
    let many = read(&Sample { cpus, ..Sample::default() }).unwrap_err();
    assert_eq!(many, BoardError::TooMany(MAX_CPUS, "CPUs"));
    let words = "the device tree has more CPUs than can be managed, 64";
    assert_eq!(many.to_string(), words);
}

#[test]
fn modules_go_by_kind_or_by_order() {
    let modules = |modules| read(&Sample { modules, ..Sample::default() });
    let ramdisk = (RAMDISK, 0x4c00_0000, 0x1000);
    let kernel = (KERNEL, 0x4400_0000, 0x1000);
    assert_eq!(modules(vec![]), Err(BoardError::NoKernel));
    assert_eq!(modules(vec![ramdisk]), Err(BoardError::NoKernel));
    assert_eq!(modules(vec![kernel]), Ok(()));
    assert_eq!(modules(vec![ramdisk, kernel]), Ok(()));
    assert_eq!(modules(vec![kernel, kernel]), Err(BoardError::TwoModules("kernel")));
    assert_eq!(modules(vec![kernel, ramdisk, ramdisk]), Err(BoardError::TwoModules("ramdisk")));
    assert_eq!(modules(vec![(KERNEL, 1, 0)]), Err(BoardError::EmptyModule("kernel")));
    assert_eq!(modules(vec![(KERNEL, u64::MAX, 2)]), Err(BoardError::EmptyModule("kernel")));
    let modules = vec![(MODULE, 0x4400_0000, 0x1000), (MODULE, 0x4c00_0000, 0x1000)];
    let blob = Sample { modules, ..Sample::default() }.tree();
    let board = Board::read(&Outline::of(&Fdt::new(&blob).unwrap())).unwrap();
    assert_eq!(board.kernel.range.start, 0x4400_0000);
    assert_eq!(board.ramdisk.unwrap().range.start, 0x4c00_0000);
}
