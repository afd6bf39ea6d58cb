//! The text in `RdmaMetadata.nixl_metadata`: an agent blob, compressed, then a trailer, as base64 or hex.

use std::sync::Arc;

use crate::sync::lock::Mutex;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::error::{Error, ErrorKind, Result};
use crate::wire::limits;
use crate::wire::trailer::Trailer;

const ENCODE: &str = "encode metadata";
const DECODE: &str = "decode metadata";

/// What tells base64 from hex; upstream tests for exactly this.
const BASE64_PREFIX: &str = "b64:";

/// The level that upstream uses.
const LEVEL: u32 = 6;

/// The least that is allocated for a decompressed blob: above the size of a blob with one region.
const FIRST_ALLOCATION: usize = 1024;

/// How the bytes become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// `b64:` and standard base64 with padding: upstream's default since 0.7.
    #[default]
    Base64,
    /// Lower-case hex without a prefix: all that upstream up to 0.6 understands.
    Hex,
}

/// What a peer's text holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The agent blob, not parsed: it may be anything up to [`limits::MAX_BLOB`] bytes.
    pub blob: Vec<u8>,
    /// The extension of a dynamo_nixl; `None`: a foreign peer, to be treated exactly as upstream would.
    pub trailer: Option<Trailer>,
    /// Fields of the trailer that this version does not know and has ignored.
    pub unknown_fields: usize,
}

/// An agent blob, compressed: what takes most of the time of encoding, and can be kept as long as the blob stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedBlob(Arc<[u8]>);

impl CompressedBlob {
    /// Compresses a blob.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] if the blob exceeds what [`decode`] accepts.
    pub fn new(blob: &[u8]) -> Result<Self> {
        if blob.len() > limits::MAX_BLOB {
            return Err(too_long("the blob is too big", blob.len(), limits::MAX_BLOB));
        }
        compress(blob).map(|stream| Self(stream.into()))
    }

    /// Makes the text that a peer gets.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] if the text exceeds what [`decode`] accepts, or the trailer has a generation that its
    /// validity word cannot hold.
    pub fn encode(&self, trailer: Option<&Trailer>, encoding: Encoding) -> Result<String> {
        let mut bytes = self.0.to_vec();
        if let Some(trailer) = trailer {
            bytes.extend_from_slice(&trailer.encode()?);
        }
        let text = match encoding {
            Encoding::Base64 => {
                let mut text = String::with_capacity(BASE64_PREFIX.len() + bytes.len().div_ceil(3) * 4);
                text.push_str(BASE64_PREFIX);
                STANDARD.encode_string(&bytes, &mut text);
                text
            }
            Encoding::Hex => to_hex(&bytes),
        };
        if text.len() > limits::MAX_ENCODED_TEXT {
            return Err(too_long(
                "the encoded metadata is too long",
                text.len(),
                limits::MAX_ENCODED_TEXT,
            ));
        }
        Ok(text)
    }
}

/// Compresses an agent blob and turns it into the text that a peer gets.
///
/// # Errors
/// As [`CompressedBlob::new`] and [`CompressedBlob::encode`].
pub fn encode(blob: &[u8], trailer: Option<&Trailer>, encoding: Encoding) -> Result<String> {
    CompressedBlob::new(blob)?.encode(trailer, encoding)
}

/// Turns a peer's text back into its agent blob and trailer.
///
/// Accepts what upstream accepts: both encodings, any compression level, upper-case hex, and white space anywhere.
/// Memory is bounded before and after decompression; the blob is not parsed.
///
/// # Errors
/// [`ErrorKind::Metadata`] for text that is empty, too long, not of the encoding it announces, not one complete zlib
/// stream, or that unfolds to more than [`limits::MAX_BLOB`]; and for a malformed trailer.
pub fn decode(text: &str) -> Result<Envelope> {
    if text.len() > limits::MAX_ENCODED_TEXT {
        return Err(refused("the text is too long")
            .with_context("length", text.len())
            .with_context("limit", limits::MAX_ENCODED_TEXT));
    }
    let bytes = match text.strip_prefix(BASE64_PREFIX) {
        Some(body) => from_base64(body)?,
        None => from_hex(text)?,
    };
    if bytes.is_empty() {
        return Err(refused("the metadata is empty"));
    }
    let (blob, used) = decompress(&bytes)?;
    let decoded = Trailer::decode(&bytes[used..])?;
    Ok(Envelope {
        blob,
        trailer: decoded.map(|decoded| decoded.trailer),
        unknown_fields: decoded.map_or(0, |decoded| decoded.unknown_fields),
    })
}

fn refused(message: &str) -> Error {
    Error::new(ErrorKind::Metadata, DECODE, message)
}

fn too_long(message: &str, length: usize, limit: usize) -> Error {
    Error::new(ErrorKind::Metadata, ENCODE, message)
        .with_context("length", length)
        .with_context("limit", limit)
}

fn compress(blob: &[u8]) -> Result<Vec<u8>> {
    /// Kept, because setting one up takes longer than what it is then used for.
    static DEFLATER: Mutex<Option<Compress>> = Mutex::new(None);
    let mut deflater = DEFLATER
        .try_lock()
        .and_then(|mut kept| kept.take())
        .unwrap_or_else(|| Compress::new(Compression::new(LEVEL), true));
    deflater.reset();
    let mut stream = Vec::with_capacity(blob.len() / 2 + 64);
    let result = loop {
        let used = deflater.total_in() as usize;
        match deflater.compress_vec(&blob[used..], &mut stream, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => break Ok(stream),
            Ok(Status::Ok | Status::BufError) => stream.reserve(stream.capacity().max(64)),
            Err(error) => {
                break Err(Error::new(ErrorKind::Metadata, ENCODE, "compression failed").with_source(error));
            }
        }
    };
    if let Some(mut kept) = DEFLATER.try_lock() {
        *kept = Some(deflater);
    }
    result
}

/// Decompresses one zlib stream; returns its content and how many bytes it took.
fn decompress(bytes: &[u8]) -> Result<(Vec<u8>, usize)> {
    /// Kept, because setting one up takes as long as what it is then used for.
    static INFLATER: Mutex<Option<Decompress>> = Mutex::new(None);
    let kept = INFLATER.try_lock().and_then(|mut kept| kept.take());
    let mut inflater = match kept {
        Some(mut inflater) => {
            inflater.reset(true);
            inflater
        }
        None => Decompress::new(true),
    };
    let result = inflate(&mut inflater, bytes);
    if let Some(mut kept) = INFLATER.try_lock() {
        *kept = Some(inflater);
    }
    result
}

fn inflate(inflater: &mut Decompress, bytes: &[u8]) -> Result<(Vec<u8>, usize)> {
    let mut blob = Vec::new();
    loop {
        // One byte above the limit is enough to see that it is exceeded; no more is ever allocated.
        let room = blob.len().max(FIRST_ALLOCATION).min(limits::MAX_BLOB + 1 - blob.len());
        blob.reserve_exact(room);
        let used = inflater.total_in() as usize;
        let status = inflater
            .decompress_vec(&bytes[used..], &mut blob, FlushDecompress::None)
            .map_err(|error| {
                refused("not a zlib stream")
                    .with_context("length", bytes.len())
                    .with_source(error)
            })?;
        if blob.len() > limits::MAX_BLOB {
            return Err(refused("the decompressed metadata is too big")
                .with_context("length", bytes.len())
                .with_context("limit", limits::MAX_BLOB));
        }
        let advanced = inflater.total_in() as usize > used;
        match status {
            Status::StreamEnd => return Ok((blob, inflater.total_in() as usize)),
            // Room was left and still nothing moved: the input is used up.
            Status::Ok | Status::BufError if blob.len() < blob.capacity() && !advanced => {
                return Err(refused("the zlib stream is truncated").with_context("length", bytes.len()));
            }
            Status::Ok | Status::BufError => {}
        }
    }
}

fn from_base64(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(without_white_space(text)).map_err(|error| {
        refused("not standard base64")
            .with_context("length", text.len())
            .with_source(error)
            .with_hint("the URL-safe alphabet and missing padding are not accepted")
    })
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits = without_white_space(text);
    if digits.len() % 2 != 0 {
        return Err(refused("an odd number of hex digits").with_context("length", digits.len()));
    }
    let mut bytes = Vec::with_capacity(digits.len() / 2);
    for pair in digits.chunks_exact(2) {
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
            return Err(refused("neither \"b64:\" at the start nor hex")
                .with_context("offset", bytes.len() * 2)
                .with_context("length", digits.len()));
        };
        bytes.push(high << 4 | low);
    }
    Ok(bytes)
}

fn digit(character: u8) -> Option<u8> {
    // A hex digit is below 16.
    (character as char).to_digit(16).map(|value| value as u8)
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .collect()
}

/// Python skips white space in both encodings; a text that was wrapped on its way stays readable.
fn without_white_space(text: &str) -> Vec<u8> {
    text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn refusal(text: &str) -> String {
        let error = decode(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Metadata);
        error.to_string()
    }

    fn base64(bytes: &[u8]) -> String {
        format!("b64:{}", STANDARD.encode(bytes))
    }

    #[test]
    fn writes_the_forms_that_upstream_writes() {
        let text = encode(b"blob", None, Encoding::Base64).unwrap();
        assert!(text.starts_with("b64:eJ"), "a zlib header of level 6, {text}");
        let hex = encode(b"blob", None, Encoding::Hex).unwrap();
        assert!(hex.starts_with("789c"), "{hex}");
        assert_eq!(from_base64(&text[4..]).unwrap(), from_hex(&hex).unwrap());
    }

    #[test]
    fn reads_what_upstream_reads() {
        // Python: zlib.compress(b"nixl", level=0).hex().upper(), wrapped by hand.
        let stored = "7801010400FBFF6E6978\n6C 045301BC";
        assert_eq!(
            decode(stored).unwrap(),
            Envelope {
                blob: b"nixl".to_vec(),
                trailer: None,
                unknown_fields: 0
            }
        );
        let wrapped = "b64:eJzL\r\ny6zI\tAQAE UwG8\n";
        assert_eq!(decode(wrapped).unwrap().blob, b"nixl");
        let padded = [compress(b"nixl").unwrap().as_slice(), b"bytes of a stranger"].concat();
        assert_eq!(decode(&base64(&padded)).unwrap().trailer, None);
    }

    #[test]
    fn refuses_what_upstream_refuses() {
        let stream = compress(b"nixl").unwrap();
        for (text, expected) in [
            (String::new(), "empty"),
            ("b64:".to_owned(), "empty"),
            (base64(&stream[2..stream.len() - 4]), "not a zlib stream"),
            (base64(&stream[..stream.len() - 1]), "truncated"),
            (
                base64(&[stream.as_slice(), &[0]].concat()).replace('=', ""),
                "not standard base64",
            ),
            ("b64:-_-_".to_owned(), "not standard base64"),
            ("B64:eJzLy6zIAQAEUwG8".to_owned(), "nor hex"),
            ("789".to_owned(), "odd number"),
        ] {
            let refused = refusal(&text);
            assert!(refused.contains(expected), "{text:?} gave {refused}");
        }
    }

    #[test]
    fn checks_the_sum_of_the_stream() {
        let mut stream = compress(b"nixl").unwrap();
        *stream.last_mut().unwrap() ^= 1;
        assert!(refusal(&base64(&stream)).contains("not a zlib stream"));
    }

    #[test]
    fn stops_at_the_limit_of_either_side() {
        let fits = vec![0; limits::MAX_BLOB];
        let stream = compress(&fits).unwrap();
        assert_eq!(decode(&base64(&stream)).unwrap().blob.len(), limits::MAX_BLOB);
        let too_big = compress(&vec![0; limits::MAX_BLOB + 1]).unwrap();
        assert!(refusal(&base64(&too_big)).contains("decompressed metadata is too big"));
        assert!(encode(&vec![0; limits::MAX_BLOB + 1], None, Encoding::Base64).is_err());
        assert!(refusal(&"0".repeat(limits::MAX_ENCODED_TEXT + 1)).contains("text is too long"));
        // Noise does not shrink, and hex doubles it.
        let mut state = 1_u32;
        let noise = (0..=limits::MAX_ENCODED_TEXT / 2).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let error = encode(&noise.collect::<Vec<_>>(), None, Encoding::Hex).unwrap_err();
        assert!(error.to_string().contains("encoded metadata is too long"), "{error}");
    }

    #[test]
    fn a_stream_that_ends_at_a_full_buffer_is_read_to_its_end() {
        for length in [
            0,
            1,
            FIRST_ALLOCATION - 1,
            FIRST_ALLOCATION,
            FIRST_ALLOCATION + 1,
            2 * FIRST_ALLOCATION,
        ] {
            let blob: Vec<u8> = (0..length).map(|index| (index * 31) as u8).collect();
            assert_eq!(decode(&base64(&compress(&blob).unwrap())).unwrap().blob, blob);
        }
    }
}
