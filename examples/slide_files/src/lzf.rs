//! LZF, the codec of h5py's `compression="lzf"`.
//!
//! A stream of runs, each begun by a control byte c. Below 32 it is followed by c + 1 literal bytes. Else it is a copy of
//! (c >> 5) + 2 bytes, where 7 in the upper three bits adds the next byte to the length, from as far back as the lower five bits
//! (the upper part) and the next byte say, plus 1. A copy may reach into what it writes.

/// The bytes of a stream; an error says what is wrong. Never more than `most` bytes are made.
pub fn decode(stream: &[u8], most: usize) -> Result<Vec<u8>, &'static str> {
    const CUT_OFF: &str = "LZF data that was cut off";
    let (mut rest, mut out) = (stream, Vec::new());
    while let Some((&control, behind)) = rest.split_first() {
        rest = behind;
        if control < 32 {
            let count = usize::from(control) + 1;
            let (run, behind) = rest.split_at_checked(count).ok_or(CUT_OFF)?;
            check_room(&out, count, most)?;
            out.extend_from_slice(run);
            rest = behind;
            continue;
        }
        let mut next = || {
            let (&byte, behind) = rest.split_first().ok_or(CUT_OFF)?;
            rest = behind;
            Ok::<_, &'static str>(usize::from(byte))
        };
        let mut count = usize::from(control >> 5) + 2;
        if control >> 5 == 7 {
            count += next()?;
        }
        let back = (usize::from(control & 31) << 8) + next()? + 1;
        let from = out.len().checked_sub(back);
        let from = from.ok_or("LZF data that copies from before its beginning")?;
        check_room(&out, count, most)?;
        for at in from..from + count {
            out.push(out[at]);
        }
    }
    Ok(out)
}

fn check_room(out: &[u8], count: usize, most: usize) -> Result<(), &'static str> {
    match out.len() + count <= most {
        true => Ok(()),
        false => Err("LZF data of more bytes than there can be"),
    }
}

#[cfg(test)]
mod tests {
    use super::decode;
    use proptest::prelude::*;

    #[test]
    fn runs_and_copies() {
        // "abc", then 4 + 2 of 3 back, then with one more byte of length 7 + 5 + 2 of 1 back.
        let stream = [2, b'a', b'b', b'c', 4 << 5, 2, 7 << 5, 5, 0];
        let text = [&b"abcabcabc"[..], &[b'c'; 14]].concat();
        assert_eq!(decode(&stream, 100), Ok(text.clone()));
        assert_eq!(decode(&stream, text.len()), Ok(text.clone()));
        assert!(decode(&stream, text.len() - 1).is_err());
        for end in [1, 3, 5, 7, 8] {
            assert!(decode(&stream[..end], 100).is_err(), "{end}");
        }
        assert!(decode(&[0, b'a', 1 << 5, 1], 100).is_err(), "one too far");
        assert_eq!(decode(&[], 0), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn anything_ends_within_bounds(
            stream in prop::collection::vec(any::<u8>(), 0..400),
            most in 0usize..2000,
        ) {
            if let Ok(bytes) = decode(&stream, most) {
                prop_assert!(bytes.len() <= most);
            }
        }
    }
}
