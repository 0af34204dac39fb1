use super::*;
use proptest::prelude::*;

/// A stream with prepared input that keeps what is written to it.
struct Script {
    input: io::Cursor<Vec<u8>>,
    output: Vec<u8>,
}

impl Script {
    fn new(input: Vec<u8>) -> Self {
        Self { input: io::Cursor::new(input), output: Vec::new() }
    }
}

impl Read for &mut Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.read(buf)
    }
}

impl Write for &mut Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.output.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Open(DstId),
    Hole(PageRun),
    Pages(PageRun, Vec<u8>),
    Finish,
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    parent: bool,
}

impl PageSink for Log {
    fn open(&mut self, dst: DstId) -> io::Result<bool> {
        self.events.push(Event::Open(dst));
        Ok(self.parent)
    }
    fn hole(&mut self, run: PageRun) -> io::Result<()> {
        self.events.push(Event::Hole(run));
        Ok(())
    }
    fn pages(&mut self, run: PageRun, data: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        data.take(run.data_len()).read_to_end(&mut bytes)?;
        self.events.push(Event::Pages(run, bytes));
        Ok(())
    }
    fn has_parent(&mut self, _: DstId) -> io::Result<bool> {
        Ok(self.parent)
    }
    fn finish(&mut self) -> io::Result<()> {
        self.events.push(Event::Finish);
        Ok(())
    }
}

fn command(dialect: Dialect, cmd: u32, nr: u64, vaddr: u64, dst: u64) -> Vec<u8> {
    let mut raw = cmd.to_le_bytes().to_vec();
    match dialect {
        Dialect::Narrow => raw.extend_from_slice(&(nr as u32).to_le_bytes()),
        Dialect::Wide => {
            raw.extend_from_slice(&[0xee; 4]);
            raw.extend_from_slice(&nr.to_le_bytes());
        }
    }
    raw.extend_from_slice(&vaddr.to_le_bytes());
    raw.extend_from_slice(&dst.to_le_bytes());
    assert_eq!(raw.len(), dialect.command_len());
    raw
}

const DST: u64 = 5 << 8 | 1;

fn whole_dump(dialect: Dialect) -> Vec<u8> {
    let mut input = command(dialect, PARENT, 0, 0, DST);
    input.extend(command(dialect, OPEN2, 0, 0, DST));
    input.extend(command(dialect, ADD_F | 4 << 16, 2, 0x1000, DST));
    input.extend([7; 8192]);
    input.extend(command(dialect, ADD_F | 2 << 16, 9, 0x8000, DST));
    input.extend(command(dialect, HOLE, 3, 0x2_0000, DST));
    input.extend(command(dialect, OPEN, 0, 0, 6 << 8 | 2));
    input.extend(command(dialect, ADD, 1, 0, 6 << 8 | 2));
    input.extend([8; 4096]);
    input.extend(command(dialect, CLOSE, 0, 0, 0));
    input
}

#[test]
fn a_dump_reaches_the_sink_in_order_in_both_dialects() {
    for dialect in [Dialect::Narrow, Dialect::Wide] {
        let mut script = Script::new(whole_dump(dialect));
        let mut log = Log { parent: true, ..Log::default() };
        let received = receive(&mut script, dialect, &mut log).unwrap();
        assert_eq!(received, Received { destinations: 2, runs: 4, bytes: 12288 });
        let run = |vaddr, nr, flags| PageRun::checked(vaddr, nr, PageFlags(flags)).unwrap();
        assert_eq!(
            log.events,
            [
                Event::Open(DstId::from_raw(DST).unwrap()),
                Event::Pages(run(0x1000, 2, 4), vec![7; 8192]),
                Event::Hole(run(0x8000, 9, 2)),
                Event::Hole(run(0x2_0000, 3, 1)),
                Event::Open(DstId::from_raw(6 << 8 | 2).unwrap()),
                Event::Pages(run(0, 1, 4), vec![8; 4096]),
                Event::Finish,
            ]
        );
        // PARENT: i32, OPEN2: u8, OPEN: nothing, CLOSE: i32.
        assert_eq!(script.output, [1, 0, 0, 0, 1, 0, 0, 0, 0]);
    }
}

#[test]
fn a_dump_that_breaks_off_anywhere_is_an_error_and_never_finished() {
    let input = whole_dump(Dialect::Wide);
    for cut in 0..input.len() {
        let mut log = Log::default();
        let mut script = Script::new(input[..cut].to_vec());
        let result = receive(&mut script, Dialect::Wide, &mut log);
        assert!(result.is_err(), "cut at {cut}");
        assert!(!log.events.contains(&Event::Finish), "cut at {cut}");
    }
}

#[test]
fn nonsense_is_named() {
    let one = |raw: Vec<u8>| {
        let mut script = Script::new(raw);
        receive(&mut script, Dialect::Wide, &mut Log::default()).unwrap_err().to_string()
    };
    let open = command(Dialect::Wide, OPEN2, 0, 0, DST);
    let after_open = |raw: Vec<u8>| one([open.clone(), raw].concat());
    assert_eq!(one(command(Dialect::Wide, 7, 0, 0, DST)), "unknown page-server command 0x7");
    assert_eq!(one(command(Dialect::Wide, OPEN2, 0, 0, 9)), "unknown page destination 0x9");
    assert_eq!(
        one(command(Dialect::Wide, ADD, 1, 0, DST)),
        "pages for process 5 before it was opened"
    );
    assert_eq!(
        after_open(command(Dialect::Wide, ADD, u64::MAX, 0, DST)),
        "invalid run of 18446744073709551615 pages at 0x0"
    );
    assert_eq!(
        after_open(command(Dialect::Wide, ADD, 1, 12, DST)),
        "invalid run of 1 pages at 0xc"
    );
}

#[test]
fn a_failing_sink_is_told_from_a_failing_connection() {
    struct Full;
    impl PageSink for Full {
        fn open(&mut self, _: DstId) -> io::Result<bool> {
            Ok(false)
        }
        fn hole(&mut self, _: PageRun) -> io::Result<()> {
            Ok(())
        }
        fn pages(&mut self, _: PageRun, _: &mut dyn Read) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn finish(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut script = Script::new(whole_dump(Dialect::Wide));
    let error = receive(&mut script, Dialect::Wide, &mut Full).unwrap_err();
    assert!(matches!(error, PageServerError::Sink(_)), "{error}");
}

#[test]
fn the_dialect_follows_the_version() {
    for (version, expected) in [
        ((3, 17), Dialect::Narrow),
        ((4, 1), Dialect::Narrow),
        ((4, 2), Dialect::Wide),
        ((5, 0), Dialect::Wide),
    ] {
        assert_eq!(Dialect::of_version(version.0, version.1), expected);
    }
}

proptest! {
    #[test]
    fn any_stream_is_received_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), wide: bool) {
        let dialect = if wide { Dialect::Wide } else { Dialect::Narrow };
        let mut script = Script::new(bytes);
        let _ = receive(&mut script, dialect, &mut Log::default());
    }

    #[test]
    fn damaged_commands_never_make_the_sink_read_beyond_the_stream(at in 0usize..200, bit in 0u8..8) {
        let mut input = whole_dump(Dialect::Wide);
        input[at] ^= 1 << bit;
        let len = input.len() as u64;
        let mut script = Script::new(input);
        let mut log = Log::default();
        if let Ok(received) = receive(&mut script, Dialect::Wide, &mut log) {
            prop_assert!(received.bytes <= len);
        }
    }
}
