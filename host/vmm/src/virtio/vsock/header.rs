// SPDX-License-Identifier: MIT OR Apache-2.0

//! The header of a packet (virtio 1.2 §5.10.6).

/// Bytes of a header.
pub const SIZE: usize = 44;
/// The address of the host.
pub const HOST: u64 = 2;
/// The type of a stream.
pub const STREAM: u16 = 1;

/// VIRTIO_VSOCK_OP_REQUEST: asks for a connection.
pub const REQUEST: u16 = 1;
/// VIRTIO_VSOCK_OP_RESPONSE: accepts it.
pub const RESPONSE: u16 = 2;
/// VIRTIO_VSOCK_OP_RST: refuses it, or ends it at once.
pub const RESET: u16 = 3;
/// VIRTIO_VSOCK_OP_SHUTDOWN: one side will not receive, or not send, any more: see the flags.
pub const SHUTDOWN: u16 = 4;
/// VIRTIO_VSOCK_OP_RW: data.
pub const DATA: u16 = 5;
/// VIRTIO_VSOCK_OP_CREDIT_UPDATE: tells the sender's room. All packets of a connection do.
pub const CREDIT_UPDATE: u16 = 6;
/// VIRTIO_VSOCK_OP_CREDIT_REQUEST: asks for a credit update.
pub const CREDIT_REQUEST: u16 = 7;

/// With [`SHUTDOWN`]: who sent it receives no more.
pub const NO_RECEIVE: u32 = 1;
/// With [`SHUTDOWN`]: who sent it sends no more.
pub const NO_SEND: u32 = 2;

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's address.
    pub source: u64,
    /// The receiver's.
    pub destination: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's.
    pub destination_port: u32,
    /// Bytes of data that follow.
    pub length: u32,
    /// [`STREAM`].
    pub kind: u16,
    /// What the packet says.
    pub operation: u16,
    /// With [`SHUTDOWN`]: [`NO_RECEIVE`], [`NO_SEND`].
    pub flags: u32,
    /// The size of the sender's receive buffer in bytes (`buf_alloc`).
    pub room: u32,
    /// Bytes that the sender has taken out of that buffer, modulo 2^32 (`fwd_cnt`).
    pub taken: u32,
}

impl Header {
    /// Takes a header apart.
    pub fn from_bytes(bytes: &[u8; SIZE]) -> Header {
        let mut rest = &bytes[..];
        let mut number = |size: usize| {
            let (value, after) = rest.split_at(size);
            rest = after;
            value.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
        };
        Header {
            source: number(8),
            destination: number(8),
            source_port: number(4) as u32,
            destination_port: number(4) as u32,
            length: number(4) as u32,
            kind: number(2) as u16,
            operation: number(2) as u16,
            flags: number(4) as u32,
            room: number(4) as u32,
            taken: number(4) as u32,
        }
    }

    /// The bytes of a header.
    pub fn to_bytes(self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut rest = &mut bytes[..];
        let mut put = |value: u64, size: usize| {
            let (place, after) = std::mem::take(&mut rest).split_at_mut(size);
            place.copy_from_slice(&value.to_le_bytes()[..size]);
            rest = after;
        };
        put(self.source, 8);
        put(self.destination, 8);
        put(self.source_port.into(), 4);
        put(self.destination_port.into(), 4);
        put(self.length.into(), 4);
        put(self.kind.into(), 2);
        put(self.operation.into(), 2);
        put(self.flags.into(), 4);
        put(self.room.into(), 4);
        put(self.taken.into(), 4);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_its_members_where_the_specification_has_them() {
        let mut bytes = [0; SIZE];
        bytes[0] = 3;
        bytes[8] = 2;
        bytes[16..20].copy_from_slice(&0x1234_5678u32.to_le_bytes());
        bytes[20] = 80;
        bytes[24] = 7;
        bytes[28] = 1;
        bytes[30] = 5;
        bytes[32] = 3;
        bytes[38] = 4;
        bytes[43] = 1;
        let header = Header {
            source: 3,
            destination: 2,
            source_port: 0x1234_5678,
            destination_port: 80,
            length: 7,
            kind: STREAM,
            operation: DATA,
            flags: NO_RECEIVE | NO_SEND,
            room: 0x4_0000,
            taken: 1 << 24,
        };
        assert_eq!(Header::from_bytes(&bytes), header);
        assert_eq!(header.to_bytes(), bytes);
    }
}
