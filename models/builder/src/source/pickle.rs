//! Python's pickle, protocol 2, as far as torch.save writes it, read as data.
//!
//! A pickle is a program for a machine with a stack and a memory, which builds objects and may call
//! anything that Python can import. Here nothing is imported or called: what a pickle calls is
//! noted, by name and with arguments, if the reader knows the name, and is an error otherwise.
//!
//! Opcodes are those of Python's `pickletools`. Values are kept in one list and refer to each other
//! by place, so that what a pickle builds may be shared, or contain itself, without harm.

use std::collections::HashMap;

use thiserror::Error;

/// Why a pickle is not one of torch.save, or not of a state dict.
#[derive(Debug, Error)]
pub enum PickleError {
    /// The file is cut off.
    #[error("its pickle ends in the middle, at byte {at}")]
    Cut {
        /// Counted from the pickle's start.
        at: usize,
    },
    /// Something else than a state dict was saved.
    #[error(
        "its pickle needs {name}, which is not part of a state dict and is not run; save \
         model.state_dict() and nothing else"
    )]
    Unknown {
        /// Module and name of what would be imported.
        name: String,
    },
    /// It was saved with another protocol, or is damaged.
    #[error(
        "its pickle has opcode {opcode:#04x} at byte {at}, which torch.save does not write by default"
    )]
    Opcode {
        /// The first byte of the instruction.
        opcode: u8,
        /// Counted from the pickle's start.
        at: usize,
    },
    /// It is damaged.
    #[error("its pickle is damaged at byte {at}")]
    Damaged {
        /// Counted from the pickle's start.
        at: usize,
    },
    /// It is damaged, or made to fill the memory.
    #[error("its pickle goes on for more than {LONGEST} steps, which no state dict needs")]
    TooLong,
}

/// The most instructions and items that a pickle may have; a VGG-19 with the state of its training
/// has some ten thousand.
const LONGEST: usize = 1 << 20;

/// What a pickle builds.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    /// Everything, in the order in which it appears.
    pub(super) values: Vec<Value<'a>>,
    /// What the pickle is of.
    pub(super) root: Id,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// Place of a value in its pickle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(usize);

/// An object of Python.
#[derive(Debug)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Int(i64),
    Bool(bool),
    /// A tuple or a list.
    List(Vec<Id>),
    /// Keys and values in their order; a later value replaces an earlier one of the same key.
    Dict(Vec<(Id, Id)>),
    /// Something of a module.
    Global(&'a str, &'a str),
    /// What calling something of a module would give, and the state that it is then given.
    Call {
        of: (&'a str, &'a str),
        arguments: Id,
        state: Option<Id>,
    },
    /// What the identifier stands for, outside the pickle.
    Persistent(Id),
    /// None, a floating-point number, or a long integer.
    Other,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` begin with. `knows` says whether a name of a module may occur.
    pub(super) fn read(
        bytes: &'a [u8],
        knows: fn(&str, &str) -> bool,
    ) -> Result<Self, PickleError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            knows,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memory: HashMap::new(),
            steps: 0,
        };
        loop {
            let opcode_at = machine.at;
            machine.spend(1)?;
            match machine.byte()? {
                STOP => break,
                opcode => machine.step(opcode, opcode_at)?,
            }
        }
        let root = machine.pop()?;
        Ok(Self { values: machine.values, root, length: machine.at })
    }

    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0]
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn index(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn list(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(items) => Some(items),
            _ => None,
        }
    }
}

const STOP: u8 = b'.';

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    knows: fn(&str, &str) -> bool,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// How high the stack was at each mark that is still on it.
    marks: Vec<usize>,
    memory: HashMap<u32, Id>,
    /// Instructions run and items moved.
    steps: usize,
}

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8, at: usize) -> Result<(), PickleError> {
        match opcode {
            0x80 => drop(self.byte()?),

            b'N' | b'G' => {
                self.take(if opcode == b'G' { 8 } else { 0 })?;
                self.push(Value::Other);
            }
            0x88 | 0x89 => self.push(Value::Bool(opcode == 0x88)),
            b'K' => self.push_int(1, false)?,
            b'M' => self.push_int(2, false)?,
            b'J' => self.push_int(4, true)?,
            0x8a => {
                let length = self.byte()?;
                self.push_int(length.into(), true)?;
            }
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.array()?);
                self.push_text(length as usize)?;
            }
            b'U' => {
                let length = self.byte()?;
                self.push_text(length.into())?;
            }

            b'(' => self.marks.push(self.stack.len()),
            b')' | b']' => self.push(Value::List(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items));
            }
            0x85..=0x87 => {
                let length = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(length).ok_or_else(|| self.damaged())?;
                let items = self.stack.split_off(from);
                self.push(Value::List(items));
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }

            b'q' => {
                let place = self.byte()?;
                self.remember(place.into())?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.array()?);
                self.remember(place)?;
            }
            b'h' => {
                let place = self.byte()?;
                self.recall(place.into())?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.array()?);
                self.recall(place)?;
            }

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                if !(self.knows)(module, name) {
                    let name = format!("{module}.{name}");
                    return Err(PickleError::Unknown { name });
                }
                self.push(Value::Global(module, name));
            }
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            opcode => return Err(PickleError::Opcode { opcode, at }),
        }
        Ok(())
    }

    /// Replaces something of a module and its arguments by the call. Of all that a pickle calls,
    /// only an OrderedDict is changed later on: it is a dict from the start.
    fn call(&mut self) -> Result<(), PickleError> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Global(module, name) = self.values[callee.0] else {
            return Err(self.damaged());
        };
        if (module, name) != ("collections", "OrderedDict") {
            self.push(Value::Call { of: (module, name), arguments, state: None });
            return Ok(());
        }
        let items = self.pairs(arguments).ok_or_else(|| self.damaged())?;
        self.push(Value::Dict(Vec::new()));
        self.set_items(&items)
    }

    /// The keys and values that an OrderedDict is called with: none, or in Python 2 all of them,
    /// as one list of pairs.
    fn pairs(&self, arguments: Id) -> Option<Vec<Id>> {
        let list = |id: Id| match &self.values[id.0] {
            Value::List(items) => Some(items),
            _ => None,
        };
        let Some(pairs) = list(arguments)?.first() else {
            return Some(Vec::new());
        };
        let mut items = Vec::new();
        for pair in list(*pairs)? {
            items.extend_from_slice(list(*pair).filter(|pair| pair.len() == 2)?);
        }
        Some(items)
    }

    /// Gives an object its state; that of a dict is its attributes, which say nothing of what is
    /// in it.
    fn build(&mut self) -> Result<(), PickleError> {
        let given = self.pop()?;
        let object = self.top()?;
        match &mut self.values[object.0] {
            Value::Call { state, .. } => *state = Some(given),
            Value::Dict(_) => {}
            _ => return Err(self.damaged()),
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        self.spend(items.len())?;
        let list = self.top()?;
        match &mut self.values[list.0] {
            Value::List(list) => list.extend(items),
            _ => return Err(self.damaged()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), PickleError> {
        self.spend(items.len())?;
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[dict.0] {
            Value::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            _ => return Err(self.damaged()),
        }
        Ok(())
    }

    fn remember(&mut self, place: u32) -> Result<(), PickleError> {
        let id = self.top()?;
        self.memory.insert(place, id);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), PickleError> {
        let id = *self.memory.get(&place).ok_or_else(|| self.damaged())?;
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(Id(self.values.len()));
        self.values.push(value);
    }

    /// A little-endian integer.
    fn push_int(&mut self, length: usize, signed: bool) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        let negative = signed && bytes.last().is_some_and(|byte| *byte >= 0x80);
        let mut number = if negative { [0xff; 8] } else { [0; 8] };
        let value = match number.get_mut(..length) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(number))
            }
            None => Value::Other,
        };
        self.push(value);
        Ok(())
    }

    fn push_text(&mut self, length: usize) -> Result<(), PickleError> {
        let bytes = self.take(length)?;
        let text = str::from_utf8(bytes).map_err(|_| self.damaged())?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn top(&self) -> Result<Id, PickleError> {
        self.stack.last().copied().ok_or_else(|| self.damaged())
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        self.stack.pop().ok_or_else(|| self.damaged())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        match self.marks.pop() {
            Some(height) if height <= self.stack.len() => Ok(self.stack.split_off(height)),
            _ => Err(self.damaged()),
        }
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or(PickleError::Cut { at: self.bytes.len() })?)?;
        self.take(1)?;
        str::from_utf8(line).map_err(|_| self.damaged())
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("as many bytes as asked for"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.at..];
        let (taken, _) =
            rest.split_at_checked(length).ok_or(PickleError::Cut { at: self.bytes.len() })?;
        self.at += length;
        Ok(taken)
    }

    fn spend(&mut self, steps: usize) -> Result<(), PickleError> {
        self.steps += steps;
        if self.steps > LONGEST { Err(PickleError::TooLong) } else { Ok(()) }
    }

    fn damaged(&self) -> PickleError {
        PickleError::Damaged { at: self.at }
    }
}
