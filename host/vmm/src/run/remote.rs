// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow ls`, `console`, `stop` and `kill`: what one program asks another that runs a
//! guest.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::keys::{Command, Keys};
use super::protocol::{self, LINE_MAX, Reply, Request, Status};
use super::registry::{self, Name};
use super::size::Size;
use super::terminal::{self, Raw};

/// How long a guest's program may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the keys are, as [`Command::Help`] tells.
const KEYS: &[u8] =
    b"\r\n[escrow: Ctrl-] q leaves the console, Ctrl-] Ctrl-] sends one Ctrl-]]\r\n";

/// How to list.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ListArguments {
    /// Print JSON: a list of the guests with all that is known of them
    #[arg(long)]
    json: bool,
}

/// Which console.
#[derive(clap::Args, Clone, Debug)]
pub struct ConsoleArguments {
    /// The guest's name
    name: Name,
    /// The guest's virtio console (hvc0) instead of its serial line (ttyAMA0)
    ///
    /// A guest whose RAM is shared or protected has one.
    #[arg(long)]
    hvc: bool,
}

/// Asks a guest's program. Its answer, and the connection.
fn ask(name: &Name, request: Request) -> Result<(Reply, BufReader<UnixStream>)> {
    let stream = registry::connect(name, registry::CONTROL)?;
    ask_over(stream, request, Instant::now() + PATIENCE)
        .with_context(|| format!("asking guest {}", name.as_str()))
}

/// Asks over a connection; the answer must be there by `until`.
fn ask_over(
    mut stream: UnixStream,
    request: Request,
    until: Instant,
) -> Result<(Reply, BufReader<UnixStream>)> {
    stream.write_all(&protocol::line(&request))?;
    let mut reader = BufReader::new(stream);
    let line = read_line(&mut reader, until)?;
    let reply = protocol::parse(&line).map_err(|error| anyhow!(plain(&error)))?;
    reader.get_ref().set_read_timeout(None)?;
    // The program may be another user's: keep control characters from this terminal.
    let reply = match reply {
        Reply::Status(status) => Reply::Status(Status {
            name: plain(&status.name),
            kernel: plain(&status.kernel),
            ..status
        }),
        Reply::Refused(why) => Reply::Refused(plain(&why)),
        Reply::Done => Reply::Done,
    };
    Ok((reply, reader))
}

/// Reads a line, without its end, that comes as a whole until a time.
fn read_line(reader: &mut BufReader<UnixStream>, until: Instant) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || line.len() > LINE_MAX {
            bail!("it does not answer");
        }
        reader.get_ref().set_read_timeout(Some(left))?;
        let bytes = match reader.fill_buf() {
            Ok([]) => bail!("it has just ended"),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!("it does not answer"),
            Err(error) => return Err(error.into()),
        };
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let count = end.map_or(bytes.len(), |end| end + 1);
        line.extend(&bytes[..count]);
        reader.consume(count);
        if end.is_some() {
            line.pop();
            return Ok(line);
        }
    }
}

/// Text without what a terminal would take for an order.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Asks for something to be done. The connection, when it is.
fn order(name: &Name, request: Request) -> Result<BufReader<UnixStream>> {
    match ask(name, request)? {
        (Reply::Done, reader) => Ok(reader),
        (Reply::Refused(why), _) => bail!("guest {}: {why}", name.as_str()),
        (Reply::Status(_), _) => bail!("guest {}: an answer to another question", name.as_str()),
    }
}

/// The guests that run, by name.
pub fn guests() -> Vec<Status> {
    let mut guests = Vec::new();
    for place in registry::places() {
        // One time limit for all guests of a user, however many do not answer.
        let until = Instant::now() + PATIENCE;
        for name in place.names() {
            let Ok(stream) = place.connect(&name, registry::CONTROL) else { continue };
            // Skip a program that does not answer: it has ended, or has another protocol.
            if let Ok((Reply::Status(status), _)) = ask_over(stream, Request::Status, until) {
                guests.push(Status { name: name.as_str().to_owned(), ..status });
            }
        }
    }
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    guests
}

/// How one guest is.
pub fn guest(name: &Name) -> Result<Status> {
    match ask(name, Request::Status)? {
        (Reply::Status(status), _) => Ok(Status { name: name.as_str().to_owned(), ..status }),
        (Reply::Refused(why), _) => bail!("guest {}: {why}", name.as_str()),
        (Reply::Done, _) => bail!("guest {}: an answer to another question", name.as_str()),
    }
}

/// Lists the guests that run.
pub fn list(arguments: ListArguments) -> Result<()> {
    let guests = guests();
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&guests)? + "\n",
        false => table(&guests),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn table(guests: &[Status]) -> String {
    let width = guests.iter().map(|guest| guest.name.len()).max().unwrap_or(0).max(4);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:<width$} {:>8} {:>4} {:>7} {:<9} {:>5} {:>9}  KERNEL",
        "NAME", "PID", "CPUS", "MEMORY", "RAM", "BOOTS", "UPTIME"
    );
    for guest in guests {
        let Status { name, pid, cpus, boots, kernel, .. } = guest;
        let memory = Size(guest.memory).to_string();
        let ram = match (guest.shared, guest.protected) {
            (true, _) => "shared",
            (false, true) => "protected",
            (false, false) => "lent",
        };
        let uptime = uptime(guest.uptime);
        let _ = writeln!(
            text,
            "{name:<width$} {pid:>8} {cpus:>4} {memory:>7} {ram:<9} {boots:>5} {uptime:>9}  {kernel}"
        );
    }
    text
}

/// Seconds as days, hours, minutes and seconds.
fn uptime(seconds: u64) -> String {
    let (minutes, second) = (seconds / 60, seconds % 60);
    let (hours, minute) = (minutes / 60, minutes % 60);
    match (hours / 24, hours % 24) {
        (0, 0) => format!("{minute}:{second:02}"),
        (0, hour) => format!("{hour}:{minute:02}:{second:02}"),
        (days, hour) => format!("{days}d{hour:02}:{minute:02}"),
    }
}

/// How to stop.
#[derive(clap::Args, Clone, Debug)]
pub struct StopArguments {
    /// The guest's name
    name: Name,
    /// How long the guest may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// End the guest at once if it takes longer
    #[arg(long)]
    kill: bool,
}

/// Presses a guest's power button, and waits until the guest is gone.
pub fn stop(arguments: &StopArguments) -> Result<()> {
    let StopArguments { name, timeout, .. } = arguments;
    let mut connection = order(name, Request::Stop)?;
    // A time limit of 0 would mean none.
    let patience = Duration::from_secs(*timeout).max(Duration::from_millis(1));
    connection.get_ref().set_read_timeout(Some(patience))?;
    if wait_for_end(&mut connection)? {
        return Ok(());
    }
    if arguments.kill {
        return kill(name);
    }
    bail!(
        "guest {} has not powered off within {timeout} s: perhaps nothing in it listens to the \
         power button (escrow kill ends it at once)",
        name.as_str()
    )
}

/// Ends a guest, and waits until it is gone.
pub fn kill(name: &Name) -> Result<()> {
    let mut connection = order(name, Request::Kill)?;
    wait_for_end(&mut connection).map(drop)
}

/// Waits until a guest's program closes a connection. Whether it has, within the
/// connection's limit of time.
fn wait_for_end(connection: &mut BufReader<UnixStream>) -> Result<bool> {
    match io::copy(connection, &mut io::sink()) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            // The program was killed before it could answer.
            io::ErrorKind::ConnectionReset => Ok(true),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(false),
            _ => Err(error).context("waiting for the guest's end"),
        },
    }
}

/// Connects standard input and output to a guest's console, until the guest
/// ends or the user leaves.
pub fn console(arguments: &ConsoleArguments) -> Result<()> {
    let mut out = io::stdout().lock();
    let mut stream = if arguments.hvc {
        registry::connect(&arguments.name, "hvc0")?
    } else {
        let connection = order(&arguments.name, Request::Console)?;
        // Output that was read together with the answer.
        out.write_all(connection.buffer())?;
        out.flush()?;
        connection.into_inner()
    };

    let mut keys = terminal::is_ours().then(Keys::default);
    let raw = keys.is_some().then(Raw::new).transpose().context("making the terminal raw")?;
    let mut input = Some(File::from(io::stdin().as_fd().try_clone_to_owned()?));
    let mut bytes = [0; 4096];
    loop {
        let mut fds = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        fds.extend(input.as_ref().map(|input| PollFd::new(input.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        let ready: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if ready.first() == Some(&true) {
            let count = stream.read(&mut bytes).unwrap_or(0);
            if count == 0 {
                break;
            }
            out.write_all(&bytes[..count])?;
            out.flush()?;
        }
        let Some(source) = input.as_mut().filter(|_| ready.get(1) == Some(&true)) else {
            continue;
        };
        let count = source.read(&mut bytes)?;
        if count == 0 {
            // The end of the input does not end the guest's output.
            input = None;
            continue;
        }
        let (typed, command) = match &mut keys {
            Some(keys) => keys.typed(&bytes[..count]),
            None => (bytes[..count].to_vec(), None),
        };
        if stream.write_all(&typed).is_err() {
            break;
        }
        match command {
            Some(Command::Quit) => break,
            Some(Command::Help) => {
                out.write_all(KEYS)?;
                out.flush()?;
            }
            None => {}
        }
    }
    drop(raw);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_as_short_as_it_can_be() {
        let times = [5, 65, 3_600, 90_061].map(uptime);
        assert_eq!(times, ["0:05", "1:05", "1:00:00", "1d01:01"]);
    }

    #[test]
    fn the_list_is_a_table() {
        let guest = Status {
            name: "web-server".into(),
            pid: 417,
            cpus: 2,
            memory: 1 << 30,
            shared: true,
            protected: false,
            kernel: "/boot/vmlinuz".into(),
            boots: 3,
            uptime: 61,
            exits: 12,
            mmio: 9,
            faults: 0,
        };
        let expected = "\
NAME            PID CPUS  MEMORY RAM       BOOTS    UPTIME  KERNEL
web-server      417    2      1G shared        3      1:01  /boot/vmlinuz
";
        assert_eq!(table(&[guest]), expected);
        assert_eq!(table(&[]).lines().count(), 1);
    }

    /// For answers that come; also on a machine with much other work.
    const LONG: Duration = Duration::from_secs(60);
    /// For answers that do not.
    const SHORT: Duration = Duration::from_millis(300);

    /// What is made of an answer that `answers` writes.
    fn asked(
        patience: Duration,
        answers: impl FnOnce(UnixStream) + Send + 'static,
    ) -> Result<Reply> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            // An end that closes before it was asked cannot be asked.
            let mut question = BufReader::new(theirs.try_clone().unwrap());
            question.read_until(b'\n', &mut Vec::new()).unwrap();
            answers(theirs)
        });
        let until = Instant::now() + patience;
        let result = ask_over(ours, Request::Status, until).map(|(reply, _)| reply);
        thread.join().unwrap();
        result
    }

    #[test]
    fn an_answer_drop_by_drop_is_not_waited_for() {
        let start = Instant::now();
        let result = asked(SHORT, |mut stream| {
            let drops = (0..100).map_while(|_| {
                std::thread::sleep(Duration::from_millis(50));
                stream.write_all(b" ").ok()
            });
            drops.for_each(drop);
        });
        assert!(result.unwrap_err().to_string().contains("does not answer"));
        assert!(start.elapsed() < Duration::from_secs(3));
        let endless = asked(LONG, |mut stream| while stream.write_all(&[b' '; 1000]).is_ok() {});
        assert!(endless.is_err());
    }

    #[test]
    fn answers_give_the_terminal_no_orders() {
        let say = |reply: Reply| {
            asked(LONG, move |mut stream| stream.write_all(&protocol::line(&reply)).unwrap())
        };
        let evil = String::from("a\u{1b}[2J\u{9b}m\nb");
        let good = "a\u{fffd}[2J\u{fffd}m\u{fffd}b";
        let status = Status { name: evil.clone(), kernel: evil.clone(), ..Status::default() };
        let Ok(Reply::Status(shown)) = say(Reply::Status(status)) else { panic!("no status") };
        assert_eq!((shown.name.as_str(), shown.kernel.as_str()), (good, good));
        assert_eq!(say(Reply::Refused(evil)).unwrap(), Reply::Refused(good.into()));
        let wrong = asked(LONG, |mut stream| stream.write_all(b"{\"\x7f\xc2\x9b\":1}\n").unwrap());
        let told = format!("{:#}", wrong.unwrap_err());
        assert!(told.contains("not understood") && !told.contains(char::is_control), "{told:?}");
    }
}
