//! A minimal protobuf reader and writer: the fields of one message, in order.
//!
//! It knows wire types only, no schema, and does not recurse: a nested message is a
//! [`Value::Bytes`] that the caller walks in turn. Groups (wire types 3 and 4) are refused; CRIU
//! does not use them.

use thiserror::Error;

/// Why bytes are not a sequence of protobuf fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProtoError {
    /// A varint, a length or a fixed value runs past the end.
    #[error("message ends inside a field")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("number does not fit in 64 bits")]
    Overlong,
    /// Field number 0 or a wire type other than 0, 1, 2 and 5.
    #[error("invalid field tag {0}")]
    Tag(u64),
}

/// The value of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: a string, bytes, a nested message or packed numbers.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

/// One field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// The field's number in the schema, never 0.
    pub number: u32,
    /// Its value.
    pub value: Value<'a>,
}

/// The fields of a message, in the order of the bytes. Ends after the first error.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Walks `message`.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ProtoError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(ProtoError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(ProtoError::Overlong);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtoError::Overlong)
    }

    fn field(&mut self) -> Result<Field<'a>, ProtoError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtoError::Tag(tag))?;
        if number == 0 {
            return Err(ProtoError::Tag(tag));
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                let mut raw = [0; 8];
                raw.copy_from_slice(self.take(8)?);
                Value::Fixed64(u64::from_le_bytes(raw))
            }
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| ProtoError::Truncated)?;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                let mut raw = [0; 4];
                raw.copy_from_slice(self.take(4)?);
                Value::Fixed32(u32::from_le_bytes(raw))
            }
            _ => return Err(ProtoError::Tag(tag)),
        };
        Ok(Field { number, value })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, ProtoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The last varint with this number (protobuf: the last one wins), if the message has one.
pub fn find_varint(message: &[u8], number: u32) -> Result<Option<u64>, ProtoError> {
    let mut found = None;
    for field in Fields::new(message) {
        if let Field { number: n, value: Value::Varint(v) } = field?
            && n == number
        {
            found = Some(v);
        }
    }
    Ok(found)
}

/// The last bytes field with this number, if the message has one.
pub fn find_bytes(message: &[u8], number: u32) -> Result<Option<&[u8]>, ProtoError> {
    let mut found = None;
    for field in Fields::new(message) {
        if let Field { number: n, value: Value::Bytes(v) } = field?
            && n == number
        {
            found = Some(v);
        }
    }
    Ok(found)
}

/// Appends `value` as a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        // Truncation keeps the low seven bits, which is what the encoding wants.
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends one field.
pub fn put_field(out: &mut Vec<u8>, field: &Field<'_>) {
    let tag = |wire: u64| u64::from(field.number) << 3 | wire;
    match field.value {
        Value::Varint(v) => {
            put_varint(out, tag(0));
            put_varint(out, v);
        }
        Value::Fixed64(v) => {
            put_varint(out, tag(1));
            out.extend_from_slice(&v.to_le_bytes());
        }
        Value::Bytes(v) => {
            put_varint(out, tag(2));
            put_varint(out, v.len() as u64);
            out.extend_from_slice(v);
        }
        Value::Fixed32(v) => {
            put_varint(out, tag(5));
            out.extend_from_slice(&v.to_le_bytes());
        }
    }
}

/// Appends a varint field.
pub fn put_uint(out: &mut Vec<u8>, number: u32, value: u64) {
    put_field(out, &Field { number, value: Value::Varint(value) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_of_every_wire_type_come_back() {
        let fields = [
            Field { number: 1, value: Value::Varint(u64::MAX) },
            Field { number: 15, value: Value::Bytes(b"name") },
            Field { number: 16, value: Value::Fixed32(7) },
            Field { number: 536_870_911, value: Value::Fixed64(1 << 63) },
        ];
        let mut bytes = Vec::new();
        for field in &fields {
            put_field(&mut bytes, field);
        }
        let back: Vec<_> = Fields::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(back, fields);
    }

    #[test]
    fn broken_messages_are_named() {
        let cases: [(&[u8], ProtoError); 6] = [
            (&[0x08], ProtoError::Truncated),
            (&[0x12, 5, 1], ProtoError::Truncated),
            (&[0x09, 1, 2], ProtoError::Truncated),
            (&[0x00, 1], ProtoError::Tag(0)),
            (&[0x0b], ProtoError::Tag(11)),
            (&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2], ProtoError::Overlong),
        ];
        for (bytes, expected) in cases {
            let mut fields = Fields::new(bytes);
            assert_eq!(fields.next(), Some(Err(expected)), "{bytes:?}");
            assert_eq!(fields.next(), None, "nothing follows an error");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let count = Fields::new(&bytes).count();
            prop_assert!(count <= bytes.len());
        }

        #[test]
        fn what_was_parsed_is_written_back_with_the_same_meaning(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let parsed: Vec<_> = Fields::new(&bytes).take_while(Result::is_ok).flatten().collect();
            let mut out = Vec::new();
            for field in &parsed {
                put_field(&mut out, field);
            }
            let again: Vec<_> = Fields::new(&out).map(Result::unwrap).collect();
            prop_assert_eq!(parsed, again);
        }
    }
}
