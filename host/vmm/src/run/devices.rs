// SPDX-License-Identifier: MIT OR Apache-2.0

//! Devices, as people write them.

use std::str::FromStr;

use serde::Deserialize;

use crate::machine::{self, Mac, NetLink};

/// A disk, as it is written: `FILE` or `FILE,ro`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Disk(pub machine::Disk);

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Disk, String> {
        let (path, read_only) = match text.strip_suffix(",ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.is_empty() {
            return Err("a disk is FILE or FILE,ro".to_owned());
        }
        Ok(Disk(machine::Disk { path: path.into(), read_only }))
    }
}

impl TryFrom<String> for Disk {
    type Error = String;

    fn try_from(text: String) -> Result<Disk, String> {
        text.parse()
    }
}

/// A network device, as it is written: `tap=NAME` or `user`, and perhaps
/// `,mac=ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Net(pub machine::Net);

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Net, String> {
        let (link, mac) = match text.split_once(",mac=") {
            Some((link, mac)) => (link, Some(parse_mac(mac)?)),
            None => (text, None),
        };
        let link = match link.split_once('=') {
            Some(("tap", name)) if !name.is_empty() && !name.contains(',') => {
                NetLink::Tap(name.to_owned())
            }
            None if link == "user" => NetLink::User,
            _ => return Err("a network device is tap=NAME or user, then ,mac=ADDRESS".to_owned()),
        };
        Ok(Net(machine::Net { link, mac }))
    }
}

impl TryFrom<String> for Net {
    type Error = String;

    fn try_from(text: String) -> Result<Net, String> {
        text.parse()
    }
}

/// Six bytes in hexadecimal, with colons between them.
fn parse_mac(text: &str) -> Result<Mac, String> {
    let byte = |digits: &str| {
        let whole = digits.len() == 2 && digits.chars().all(|c| c.is_ascii_hexdigit());
        u8::from_str_radix(digits, 16).ok().filter(|_| whole)
    };
    let bytes = text.split(':').map(byte).collect::<Option<Vec<_>>>();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    let mac = mac.ok_or("an address is six bytes in hexadecimal: 52:54:00:12:34:56")?;
    if mac[0] & 1 != 0 {
        return Err("that address is of a group of stations: its first byte is odd".to_owned());
    }
    Ok(Mac(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_file_and_a_mode() {
        let disk = |text: &str| text.parse().map(|Disk(disk)| disk);
        let expected = |path: &str, read_only| machine::Disk { path: path.into(), read_only };
        assert_eq!(disk("a.img"), Ok(expected("a.img", false)));
        assert_eq!(disk("/x,y.img,ro"), Ok(expected("/x,y.img", true)));
        assert!(disk("").is_err() && disk(",ro").is_err());
    }

    #[test]
    fn a_network_device_is_a_link_and_an_address() {
        let net = |text: &str| text.parse().map(|Net(net)| net);
        let tap = NetLink::Tap("tap0".into());
        assert_eq!(net("tap=tap0"), Ok(machine::Net { link: tap.clone(), mac: None }));
        let mac = Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0xab]));
        assert_eq!(net("tap=tap0,mac=52:54:00:12:34:aB"), Ok(machine::Net { link: tap, mac }));
        assert_eq!(net("user"), Ok(machine::Net { link: NetLink::User, mac: None }));
        for bad in [
            "",
            "tap",
            "tap=",
            "tap=a,b",
            "user=x",
            "bridge=br0",
            "user,mac=",
            "user,mac=52:54:00:12:34",
            "user,mac=52:54:00:12:34:56:78",
            "user,mac=5:54:00:12:34:56",
            "user,mac=+2:54:00:12:34:56",
            "user,mac=53:54:00:12:34:56",
        ] {
            assert!(net(bad).is_err(), "{bad}");
        }
    }
}
