//! A library that is nothing but a list of others.
//!
//! Libraries that are loaded together find each other's symbols in one order, and NIXL's, each of which brings along the same C++
//! libraries, rely on that. They can only be loaded together by one that needs them, and their own names for each other lead
//! nowhere yet. So that one is made here, and names them by their paths.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use object::elf::{
    DT_HASH, DT_NEEDED, DT_NULL, DT_STRSZ, DT_STRTAB, DT_SYMENT, DT_SYMTAB, Dyn64, DynamicTag, FileHeader64, PF_R,
    PF_W, PT_DYNAMIC, PT_GNU_STACK, PT_LOAD, ProgramHeader64, ProgramType, Sym64,
};
use object::endian::{Endianness, I64, U16, U32, U64};
use object::pod::{bytes_of, bytes_of_slice};

type Header = FileHeader64<Endianness>;
type Segment = ProgramHeader64<Endianness>;
type Entry = Dyn64<Endianness>;

/// The largest page of the machines that there are.
const PAGE: u64 = 1 << 16;
/// A table of hashes with one empty chain, for the one symbol that every table begins with.
const HASHES: [u32; 4] = [1, 1, 0, 0];

/// A library that needs those files, of the kind that another one's header tells.
pub(super) fn bundle(like: &Header, files: &[PathBuf]) -> Vec<u8> {
    let endian = Endianness::default();
    let mut names = vec![0];
    let mut dynamic: Vec<(DynamicTag, u64)> = Vec::new();
    for file in files {
        dynamic.push((DT_NEEDED, names.len() as u64));
        names.extend(file.as_os_str().as_bytes());
        names.push(0);
    }
    // One after the other: header, segments, dynamic section, symbols, hashes, names.
    const SEGMENTS: usize = 3;
    const FURTHER: usize = 6;
    let segments = size_of::<Header>();
    let entries = segments + SEGMENTS * size_of::<Segment>();
    let entries_size = (dynamic.len() + FURTHER) * size_of::<Entry>();
    let symbols = entries + entries_size;
    let hashes = symbols + size_of::<Sym64<Endianness>>();
    let strings = hashes + size_of_val(&HASHES);
    let size = (strings + names.len()) as u64;
    dynamic.extend([
        (DT_STRTAB, strings as u64),
        (DT_STRSZ, names.len() as u64),
        (DT_SYMTAB, symbols as u64),
        (DT_SYMENT, size_of::<Sym64<Endianness>>() as u64),
        (DT_HASH, hashes as u64),
        (DT_NULL, 0),
    ]);
    let entry = |(tag, value): (DynamicTag, u64)| Entry {
        d_tag: I64::new(endian, tag),
        d_val: U64::new(endian, value),
    };
    let dynamic: Vec<Entry> = dynamic.into_iter().map(entry).collect();
    let segment = |kind: ProgramType, offset: usize, size: u64, align: u64| Segment {
        p_type: U32::new(endian, kind),
        p_flags: U32::new(endian, PF_R | PF_W),
        p_offset: U64::new(endian, offset as u64),
        p_vaddr: U64::new(endian, offset as u64),
        p_paddr: U64::new(endian, offset as u64),
        p_filesz: U64::new(endian, size),
        p_memsz: U64::new(endian, size),
        p_align: U64::new(endian, align),
    };
    let header = Header {
        e_entry: U64::new(endian, 0),
        e_phoff: U64::new(endian, segments as u64),
        e_phnum: U16::new(endian, SEGMENTS as u16),
        e_shoff: U64::new(endian, 0),
        e_shnum: U16::new(endian, 0),
        ..*like
    };
    let mut bytes = bytes_of(&header).to_vec();
    bytes.extend(bytes_of_slice(&[
        segment(PT_LOAD, 0, size, PAGE),
        segment(PT_DYNAMIC, entries, entries_size as u64, 8),
        segment(PT_GNU_STACK, 0, 0, 16),
    ]));
    bytes.extend(bytes_of_slice(&dynamic));
    bytes.extend([0; size_of::<Sym64<Endianness>>()]);
    bytes.extend(HASHES.iter().flat_map(|word| word.to_ne_bytes()));
    bytes.extend(names);
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::elf::Image;
    use super::super::folder::Folder;
    use super::super::{load, originals};
    use super::*;

    /// A small library that a process rarely has: the loader has to look for it where it is told to.
    fn some_library() -> Option<PathBuf> {
        let folder = originals::loaded_files()
            .into_iter()
            .find(|file| originals::name(file) == "libc.so.6")?
            .parent()?
            .to_path_buf();
        Some(folder.join("libutil.so.1")).filter(|file| file.exists())
    }

    #[test]
    fn the_loader_takes_it_and_loads_what_it_names() {
        let Some(library) = some_library() else { return };
        let image = Image::parse(fs::read(&library).unwrap()).unwrap();
        let folder = Folder::make().unwrap();
        let copy = Path::new("some.so");
        folder.write(copy, &fs::read(&library).unwrap()).unwrap();
        let bundle = bundle(&image.header(), &[folder.path().join(copy)]);
        folder.write(Path::new("bundle.so"), &bundle).unwrap();
        load(&folder.path().join("bundle.so"), 0).unwrap();
        let loaded = originals::loaded_files();
        assert!(loaded.contains(&folder.path().join(copy)), "{loaded:?}");
    }
}
