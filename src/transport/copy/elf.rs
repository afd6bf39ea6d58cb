//! One library's file, read into memory, of which a copy is made that the dynamic loader takes for another library.
//!
//! The loader knows a library by its soname, and shares one with whoever needs that name; so both names change, in place:
//! their first three letters ("lib") become others. And it has one of each *unique* symbol in a process, which is how C++ marks
//! variables of inline functions and templates: in a copy these become ordinary ones.
//!
//! All offsets are found as the loader finds them, by the segments and not by the sections, and none is used unchecked.

use std::path::Path;

use object::elf::{
    DT_GNU_HASH, DT_NEEDED, DT_SONAME, DT_STRSZ, DT_STRTAB, DT_SYMTAB, DynamicTag, FileHeader64, STB_GNU_UNIQUE,
    STB_WEAK, Sym64,
};
use object::endian::Endianness;
use object::read::elf::{Dyn as _, FileHeader as _, GnuHashTable, ProgramHeader as _};

pub(super) type Header = FileHeader64<Endianness>;
type Symbol = Sym64<Endianness>;

/// The first letters of the names, as many as a [`Tag`] has.
const PREFIX: &[u8] = b"lib";
/// Where in a symbol its binding is (`st_info`).
const BINDING_OFFSET: usize = std::mem::offset_of!(Symbol, st_info);

/// What a copy's names begin with instead.
pub(super) type Tag = [u8; PREFIX.len()];

/// A library's file.
pub(super) struct Image {
    bytes: Vec<u8>,
    header: Header,
    soname: Option<Name>,
    needed: Vec<Name>,
    /// Where the bindings of its unique symbols are.
    unique: Vec<usize>,
}

#[derive(Clone)]
struct Name {
    offset: usize,
    text: String,
}

impl Image {
    /// Finds what is to be changed.
    ///
    /// # Errors
    /// It is no library of this machine's kind, or a damaged one; in words.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, String> {
        let reader = Reader::new(&bytes)?;
        let mut soname = None;
        let mut needed = Vec::new();
        for (tag, value) in &reader.dynamic {
            if *tag == DT_SONAME {
                soname = Some(reader.name(*value)?);
            } else if *tag == DT_NEEDED {
                needed.push(reader.name(*value)?);
            }
        }
        Ok(Self {
            header: reader.header,
            soname,
            needed,
            unique: reader.unique_symbols()?,
            bytes,
        })
    }

    /// What kind of file it is.
    pub(super) fn header(&self) -> Header {
        self.header
    }

    /// What others know it by, given its file.
    pub(super) fn known_as(&self, file: &Path) -> String {
        self.soname.as_ref().map_or_else(
            || file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            |name| name.text.clone(),
        )
    }

    /// The names of what it needs.
    pub(super) fn needed(&self) -> impl Iterator<Item = &str> {
        self.needed.iter().map(|name| &*name.text)
    }

    /// The file of a library with its own name and names of needed libraries changed, and no unique symbols. Names that do
    /// not begin with "lib", or that `is_copied` does not take, stay.
    pub(super) fn patched(mut self, tag: Tag, is_copied: impl Fn(&str) -> bool) -> Vec<u8> {
        let names = self.soname.iter().chain(&self.needed);
        for name in names.filter(|name| is_copied(&name.text) && name.text.as_bytes().starts_with(PREFIX)) {
            // What lies there was read in `parse`, and may be done already where several entries share a string.
            self.bytes[name.offset..name.offset + PREFIX.len()].copy_from_slice(&tag);
        }
        for offset in self.unique {
            let kind = self.bytes[offset] & 0xf;
            self.bytes[offset] = STB_WEAK.0 << 4 | kind;
        }
        self.bytes
    }
}

/// A name as a copy has it.
pub(super) fn tagged(name: &str, tag: Tag) -> String {
    name.strip_prefix("lib").map_or_else(
        || name.to_owned(),
        |rest| format!("{}{rest}", String::from_utf8_lossy(&tag)),
    )
}

/// The dynamic section and what it points to.
struct Reader<'bytes> {
    bytes: &'bytes [u8],
    header: Header,
    endian: Endianness,
    segments: &'bytes [<Header as object::read::elf::FileHeader>::ProgramHeader],
    dynamic: Vec<(DynamicTag, u64)>,
    /// Where the names begin, and how many bytes they have.
    strings: (usize, usize),
}

impl<'bytes> Reader<'bytes> {
    fn new(bytes: &'bytes [u8]) -> Result<Self, String> {
        let words = |error: object::read::Error| error.to_string();
        let header = Header::parse(bytes).map_err(words)?;
        let endian = header.endian().map_err(words)?;
        let segments = header.program_headers(endian, bytes).map_err(words)?;
        let mut dynamic = Vec::new();
        for segment in segments {
            if let Some(entries) = segment.dynamic(endian, bytes).map_err(words)? {
                let entries = entries.iter().map(|entry| (entry.tag(endian), entry.val(endian)));
                dynamic.extend(entries.take_while(|(tag, _)| *tag != object::elf::DT_NULL));
            }
        }
        let mut reader = Self {
            bytes,
            header: *header,
            endian,
            segments,
            dynamic,
            strings: (0, 0),
        };
        let (Some(address), Some(size)) = (reader.value(DT_STRTAB), reader.value(DT_STRSZ)) else {
            return Err("it is not linked dynamically".to_owned());
        };
        let strings = reader.range(address)?;
        let size = usize::try_from(size).ok().filter(|size| *size <= strings.len());
        reader.strings = (strings.start, size.ok_or("its names do not lie in it")?);
        Ok(reader)
    }

    fn value(&self, wanted: DynamicTag) -> Option<u64> {
        self.dynamic
            .iter()
            .find(|(tag, _)| *tag == wanted)
            .map(|(_, value)| *value)
    }

    /// What lies at an address that the library will have once loaded, and behind it in the same segment.
    fn range(&self, address: u64) -> Result<std::ops::Range<usize>, String> {
        let found = self.segments.iter().find_map(|segment| {
            if segment.p_type(self.endian) != object::elf::PT_LOAD {
                return None;
            }
            let (offset, size) = segment.file_range(self.endian);
            let inside = address.checked_sub(segment.p_vaddr(self.endian))?;
            let start = usize::try_from(offset.checked_add(inside)?).ok()?;
            let end = usize::try_from(offset.checked_add(size)?).ok()?;
            (inside < size && end <= self.bytes.len()).then_some(start..end)
        });
        found.ok_or_else(|| format!("nothing lies in it for the address {address:#x}"))
    }

    fn name(&self, place: u64) -> Result<Name, String> {
        let (start, size) = self.strings;
        let damaged = || format!("it has no name at {place:#x}");
        let place = usize::try_from(place).map_err(|_| damaged())?;
        let strings = &self.bytes[start..start + size];
        let rest = strings.get(place..).ok_or_else(damaged)?;
        let end = rest.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
        let text = std::str::from_utf8(&rest[..end]).map_err(|_| damaged())?;
        Ok(Name {
            offset: start + place,
            text: text.to_owned(),
        })
    }

    /// Where the bindings of the unique symbols are.
    fn unique_symbols(&self) -> Result<Vec<usize>, String> {
        let symbols = self.range(self.value(DT_SYMTAB).ok_or("it has no symbols")?)?;
        let count = self.symbol_count()?;
        if count > symbols.len() / size_of::<Symbol>() {
            return Err("its symbols do not lie in it".to_owned());
        }
        let bindings = (0..count).map(|index| symbols.start + index * size_of::<Symbol>() + BINDING_OFFSET);
        Ok(bindings
            .filter(|offset| self.bytes[*offset] >> 4 == STB_GNU_UNIQUE.0)
            .collect())
    }

    /// How many symbols there are, up to the last one that is defined here: that is what the hashes are for.
    fn symbol_count(&self) -> Result<usize, String> {
        let hashes = self.range(self.value(DT_GNU_HASH).ok_or("it has no hashes of its symbols")?)?;
        let hashes =
            GnuHashTable::<Header>::parse(self.endian, &self.bytes[hashes]).map_err(|error| error.to_string())?;
        Ok(hashes.symbol_table_length(self.endian).unwrap_or(0) as usize)
    }
}

#[cfg(test)]
mod tests;
