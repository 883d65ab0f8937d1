//! The Confluent framing: a zero byte, the schema's id, and for Protobuf which message of the file it is.

/// Id of the schema, and the rest of the payload.
pub(crate) fn split(payload: &[u8]) -> Result<(u32, &[u8]), String> {
    match payload {
        [0, a, b, c, d, rest @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), rest)),
        [0, ..] => Err("it is too short for a schema id".to_owned()),
        [first, ..] => Err(format!(
            "its first byte is {first} and not 0: it has no schema id before it; use `framing: none`"
        )),
        [] => Err("it is empty".to_owned()),
    }
}

/// What goes before a body.
pub(crate) fn header(id: u32) -> [u8; 5] {
    let [a, b, c, d] = id.to_be_bytes();
    [0, a, b, c, d]
}

/// The path to a message in its file, and the rest. The path `[0]` is written as a single zero.
pub(crate) fn split_indexes(mut bytes: &[u8]) -> Result<(Vec<usize>, &[u8]), String> {
    let count = zigzag(&mut bytes)?;
    if count == 0 {
        return Ok((vec![0], bytes));
    }
    // A message is nested at most a few levels deep; anything else is no path.
    let count = usize::try_from(count).ok().filter(|count| *count <= 64);
    let count = count.ok_or("its message indexes are damaged")?;
    let mut path = Vec::with_capacity(count);
    for _ in 0..count {
        let index = usize::try_from(zigzag(&mut bytes)?);
        path.push(index.map_err(|_| "a message index is negative")?);
    }
    Ok((path, bytes))
}

/// The path as it is written.
pub(crate) fn indexes(path: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    if path == [0] {
        out.push(0);
        return out;
    }
    put_zigzag(path.len() as i64, &mut out);
    path.iter()
        .for_each(|index| put_zigzag(*index as i64, &mut out));
    out
}

fn zigzag(bytes: &mut &[u8]) -> Result<i64, String> {
    let (mut value, mut shift) = (0_u64, 0);
    loop {
        let (byte, rest) = bytes
            .split_first()
            .ok_or("its message indexes end too early")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
        shift += 7;
        if shift > 63 {
            return Err("its message indexes are damaged".to_owned());
        }
    }
}

fn put_zigzag(value: i64, out: &mut Vec<u8>) {
    let mut value = ((value << 1) ^ (value >> 63)) as u64;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (path, bytes) in [
            (vec![0], vec![0]),
            (vec![1], vec![2, 2]),
            (vec![0, 2], vec![4, 0, 4]),
        ] {
            assert_eq!(indexes(&path), bytes);
            let with_rest = [bytes, vec![7]].concat();
            assert_eq!(split_indexes(&with_rest).unwrap(), (path, &[7][..]));
        }
        assert_eq!(
            split(&[&header(70_000)[..], b"x"].concat()).unwrap(),
            (70_000, &b"x"[..])
        );
        for damaged in [&b""[..], &[0, 1], b"{}", &[9, 0, 0, 0, 1]] {
            split(damaged).unwrap_err();
        }
        for damaged in [&b""[..], &[255; 12], &[4, 2], &[1]] {
            split_indexes(damaged).unwrap_err();
        }
    }
}
