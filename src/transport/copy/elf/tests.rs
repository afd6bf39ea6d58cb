use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// A library that every process has loaded, and small enough to damage it in many ways.
fn library() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().filter_map(|line| line.split_whitespace().last());
    let mut found = found.filter(|path| path.contains("/libgcc_s.so"));
    PathBuf::from(found.next().unwrap())
}

fn image() -> Image {
    Image::parse(fs::read(library()).unwrap()).unwrap()
}

#[test]
fn names_are_found() {
    assert_eq!(image().known_as(Path::new("/x/other.so")), "libgcc_s.so.1");
    assert!(image().needed().any(|name| name == "libc.so.6"));
}

#[test]
fn names_are_changed_in_place_where_they_are_asked_for() {
    let before = fs::read(library()).unwrap();
    let after = image().patched(*b"x0z", |name| name == "libgcc_s.so.1");
    assert_eq!(before.len(), after.len());
    let image = Image::parse(after).unwrap();
    assert_eq!(image.known_as(Path::new("")), "x0zgcc_s.so.1");
    assert!(image.needed().any(|name| name == "libc.so.6"));
    assert_eq!(tagged("libgcc_s.so.1", *b"x0z"), "x0zgcc_s.so.1");
    assert_eq!(tagged("other.so", *b"x0z"), "other.so");
}

#[test]
fn unique_symbols_become_weak_ones() {
    // Such a library is not everywhere, so one is made: each of its symbols that others see.
    let mut bytes = fs::read(library()).unwrap();
    let reader = Reader::new(&bytes).unwrap();
    let symbols = reader.range(reader.value(DT_SYMTAB).unwrap()).unwrap().start;
    let last = symbols + (reader.symbol_count().unwrap() - 1) * size_of::<Symbol>() + BINDING_OFFSET;
    let kind = bytes[last] & 0xf;
    bytes[last] = STB_GNU_UNIQUE.0 << 4 | kind;
    let image = Image::parse(bytes).unwrap();
    assert_eq!(image.unique, [last]);
    assert_eq!(image.patched(*b"x0z", |_| false)[last], STB_WEAK.0 << 4 | kind);
}

#[test]
fn damaged_libraries_are_refused_or_read_and_nothing_else() {
    let whole = fs::read(library()).unwrap();
    assert!(Image::parse(Vec::new()).is_err());
    assert!(Image::parse(b"#!/bin/sh\n".to_vec()).is_err());
    let parse = |bytes: Vec<u8>| {
        Image::parse(bytes)
            .map(|image| image.patched(*b"x0z", |_| true))
            .is_ok()
    };
    for length in (0..whole.len()).step_by(whole.len() / 300) {
        assert!(
            !parse(whole[..length].to_vec()) || length > whole.len() / 2,
            "half of it was taken"
        );
    }
    // What decides lies in the first pages and in the dynamic section: there each byte is changed, elsewhere some.
    let reader = Reader::new(&whole).unwrap();
    let dynamic = reader
        .segments
        .iter()
        .find(|segment| segment.p_type(reader.endian) == object::elf::PT_DYNAMIC);
    let (start, size) = dynamic.unwrap().file_range(reader.endian);
    let decisive = (0..1000).chain(start as usize..(start + size) as usize);
    for place in decisive.chain((1000..whole.len()).step_by(997)) {
        for value in [0, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[place] = value;
            parse(bytes);
        }
    }
}
