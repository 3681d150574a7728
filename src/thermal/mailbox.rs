//! The mailbox of a Raspberry Pi's firmware, behind `/dev/vcio`: asked here for nothing but what holds the
//! board back. A message is a list of tags in 32-bit words; the firmware answers in the same words
//! (github.com/raspberrypi/firmware/wiki/Mailbox-property-interface).

use std::fs::File;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Where the kernel hands messages over.
const DEVICE: &str = "/dev/vcio";

/// `IOCTL_MBOX_PROPERTY`, `_IOWR(100, 0, char *)`: the size in it is that of a pointer, whatever the message.
const PROPERTY: Opcode = opcode::read_write::<*mut u8>(100, 0);

/// Asks what holds the board back.
const GET_THROTTLED: u32 = 0x0003_0046;

/// Codes of a message: a request, and one that was carried out.
const REQUEST: u32 = 0;
const DONE: u32 = 0x8000_0000;

/// A message with one tag that carries one word: its size in bytes, its code, the tag, the size of the tag's
/// value, the tag's own code, the value, and the end of the tags.
type Message = [u32; 7];

/// Bits of `get_throttled`; nothing where there is no such firmware, or it does not answer.
pub(super) fn throttled() -> Option<u32> {
    let device = File::open(DEVICE).ok()?;
    let mut message = request();
    // SAFETY: the driver reads the size in the first word, and reads and writes as many bytes there, which are
    // those of the message; it keeps no pointer to them.
    unsafe { ioctl(&device, Updater::<PROPERTY, Message>::new(&mut message)) }.ok()?;
    answer(&message)
}

fn request() -> Message {
    [size_of::<Message>() as u32, REQUEST, GET_THROTTLED, size_of::<u32>() as u32, 0, 0, 0]
}

/// The word with which the firmware answered; nothing unless it did.
fn answer(message: &Message) -> Option<u32> {
    let &[_, code, tag, _, answered, value, _] = message;
    let length = answered.checked_sub(DONE)?;
    let whole = code == DONE && tag == GET_THROTTLED && length == size_of::<u32>() as u32;
    whole.then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_the_firmware_expects() {
        assert_eq!(request(), [28, 0, 0x30046, 4, 0, 0, 0]);
        let pointer = size_of::<*mut u8>() as Opcode;
        assert_eq!(PROPERTY, 0xc000_6400 | pointer << 16);
    }

    #[test]
    fn only_a_whole_answer_counts() {
        let answered: Message = [28, 0x8000_0000, 0x30046, 4, 0x8000_0004, 0x50005, 0];
        assert_eq!(answer(&answered), Some(0x50005));
        assert_eq!(answer(&request()), None);
        for (at, word) in [(1, 0x8000_0001), (2, 0x30047), (4, 0), (4, 0x8000_0000), (4, 4)] {
            let mut other = answered;
            other[at] = word;
            assert_eq!(answer(&other), None, "{other:x?}");
        }
    }
}
