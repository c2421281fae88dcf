//! Detects, from its first bytes, a file whose content does not match its name: a web page saved by
//! a failed download, or an archive with another extension.

/// Returns what the file that starts with `first` is, and what to do. Returns `None` if the bytes
/// do not tell. The message follows the file's name.
pub fn other_content(first: &[u8]) -> Option<&'static str> {
    let text = first.trim_ascii_start();
    let begins = |start: &str| {
        let length = text.len().min(start.len());
        length >= 5 && text[..length].eq_ignore_ascii_case(&start.as_bytes()[..length])
    };
    match first {
        _ if ["<!doctype html", "<html", "<?xml"].into_iter().any(begins) => {
            Some("is a web page, not the file: the download failed; fetch it again")
        }
        [b'P', b'K', 3, 4, ..] => Some("is a zip archive; if torch.save wrote it, rename it to pytorch_model.bin"),
        [0x1f, 0x8b, ..] => Some("is compressed with gzip: decompress it first"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("is compressed with zstd: decompress it first"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("is UTF-16 text: save it as UTF-8"),
        [b'G', b'G', b'U', b'F', ..] => Some("is in llama.cpp's format, GGUF, which is not supported"),
        [0x89, b'H', b'D', b'F', ..] => Some("is HDF5, as written by Keras, which is not supported"),
        // The header length, less than 16 MB, followed by the header.
        [_, _, _, 0, 0, 0, 0, 0, b'{', ..] => Some("is a safetensors file: rename it to model.safetensors"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::other_content;

    #[test]
    fn the_first_bytes_tell() {
        let says =
            |first: &[u8], word: &str| assert!(other_content(first).is_some_and(|said| said.contains(word)), "{word}");
        says(b"<!DOCTYP", "web page");
        says(b"\n<html><head>", "web page");
        says(b"PK\x03\x04\0\0\0\0", "pytorch_model.bin");
        says(b"\x1f\x8b\x08\0", "gzip");
        says(b"\xff\xfe{\0", "UTF-8");
        says(b"\x40\x01\0\0\0\0\0\0{\"__", "safetensors");
        for plain in [b"{\"model_type\"".as_slice(), b"", b"<", b"\x80\x02}q"] {
            assert_eq!(other_content(plain), None);
        }
    }
}
