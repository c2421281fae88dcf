//! A whole `pytorch_model.bin`.
#![no_main]

use inheritune_fuzz::readers::torch_archive;

libfuzzer_sys::fuzz_target!(|file: &[u8]| torch_archive::check(file));

// Blind changes of length break every offset after them. Half of the mutations therefore change one
// entry and rebuild the archive.
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0
        && let Some(mut entries) = torch_archive::entries(&data[..size])
    {
        let at = seed as usize / 2 % entries.len();
        let entry = &mut entries[at].1;
        let length = entry.len();
        // Room to double in length, and some for an entry that is still empty.
        entry.resize(2 * length + 64, 0);
        let room = entry.len();
        let changed = libfuzzer_sys::fuzzer_mutate(entry, length, room);
        entry.truncate(changed);
        let file = torch_archive::archive(&entries);
        if let Some(place) = data.get_mut(..file.len()).filter(|place| place.len() <= max_size) {
            place.copy_from_slice(&file);
            return file.len();
        }
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
});
