#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Joins fragments of a pickle.
fn pickle(parts: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02".as_slice(), &parts.concat(), b"."].concat()
}

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

/// Returns `('storage', torch.FloatStorage, KEY, 'cpu', numbers)` as a persistent id.
fn storage(key: &str, numbers: u8) -> Vec<u8> {
    [
        b"(".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text(key),
        text("cpu"),
        vec![b'K', numbers],
        b"tQ".to_vec(),
    ]
    .concat()
}

const REBUILD: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n";
const HOOKS: &[u8] = b"\x89ccollections\nOrderedDict\n)R";

/// Returns a tensor with a storage of 6 numbers and an offset, with dimensions and strides as tuple
/// opcodes.
fn tensor(offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    [REBUILD, b"(", &storage("0", 6), &[b'K', offset], shape, strides, HOOKS, b"tR"].concat()
}

fn refused(bytes: &[u8], expected: Expect) {
    expected.assert_eq(&Pickle::parse(bytes).unwrap_err().to_string());
}

#[test]
fn plain_values() {
    let bytes = pickle(&[
        b"}(",
        &text("none"),
        b"N",
        &text("true"),
        b"\x88",
        &text("int"),
        b"J\xfe\xff\xff\xff",
        &text("long"),
        b"\x8a\x05\x00\x00\x00\x00\x01",
        &text("minus"),
        b"\x8a\x01\xff",
        &text("float"),
        b"G\x3f\xf8\x00\x00\x00\x00\x00\x00",
        b"\x8c\x04list](K\x01M\x00\x01eK\x07\x85u",
    ]);
    // One value too many for the pairs: the list and a tuple count as two.
    refused(
        &bytes,
        expect![
            "its pickle is not valid at byte 102: a dict's keys must be strings or whole numbers, each with a value"
        ],
    );
    let bytes =
        pickle(&[b"}(", &text("int"), b"J\xfe\xff\xff\xff", b"\x8c\x04long\x8a\x05\x00\x00\x00\x00\x01K\x03\x8a\x00u"]);
    let read = Pickle::parse(&bytes).unwrap();
    let entries = [
        (Value::Text("int"), Value::Int(-2)),
        (Value::Text("long"), Value::Int(1 << 32)),
        (Value::Int(3), Value::Int(0)),
    ];
    assert_eq!(read.dict(read.root()).unwrap(), entries);
    let float = Pickle::parse(b"\x80\x02G\x3f\xf8\x00\x00\x00\x00\x00\x00.").unwrap().root();
    assert_eq!(float, Value::Float(1.5));
}

#[test]
fn a_tensor_is_described() {
    let bytes = pickle(&[&tensor(2, b"K\x02K\x02\x86", b"K\x02K\x01\x86")]);
    let read = Pickle::parse(&bytes).unwrap();
    let storage = Storage { dtype: Dtype::F32, key: "0", numbers: 6 };
    let expected = PickledTensor { storage, offset: 2, shape: vec![2, 2], strides: vec![2, 1] };
    assert_eq!(read.tensor(read.root()), Some(&expected));
    // A parameter and a subclass of the tensor are read as the tensor.
    let parameter = pickle(&[
        b"ctorch._utils\n_rebuild_parameter\n(",
        &tensor(2, b"K\x02K\x02\x86", b"K\x02K\x01\x86"),
        HOOKS,
        b"tR",
    ]);
    let read = Pickle::parse(&parameter).unwrap();
    assert_eq!(read.tensor(read.root()), Some(&expected));
}

#[test]
fn nothing_is_executed() {
    refused(
        &pickle(&[b"cos\nsystem\n", &text("echo hacked"), b"\x85R"]),
        expect![
            "its pickle refers to `os.system` at byte 2, which is not a known part of a tensor; it is neither loaded nor executed"
        ],
    );
    refused(
        &pickle(&[b"\x8c\x05posix\x8c\x06system\x93"]),
        expect![
            "its pickle refers to `posix.system` at byte 17, which is not a known part of a tensor; it is neither loaded nor executed"
        ],
    );
    refused(
        &pickle(&[b"cbuiltins\neval\n"]),
        expect![
            "its pickle refers to `builtins.eval` at byte 2, which is not a known part of a tensor; it is neither loaded nor executed"
        ],
    );
    // INST, OBJ, NEWOBJ, EXT1, PERSID, protocol 0's STRING and GET
    for opcode in *b"io\x81\x82PSg" {
        let error = Pickle::parse(&[0x80, 2, opcode, b'.']).unwrap_err();
        assert_eq!(error, PickleError::Opcode { opcode, at: 2 });
    }
    refused(
        &pickle(&[b"\x81"]),
        expect![
            "its pickle has opcode 0x81 at byte 2, which is not supported: checkpoints of plain tensors never use it"
        ],
    );
    refused(
        &pickle(&[b"ctorch\nFloatStorage\n)R"]),
        expect!["its pickle is not valid at byte 23: torch.FloatStorage is called, which torch.save does not do"],
    );
    refused(
        &pickle(&[&text("len"), b")R"]),
        expect!["its pickle is not valid at byte 11: it calls something that is not a known function"],
    );
    refused(
        &pickle(&[b"ccollections\nOrderedDict\n)R}(", &text("__class__"), b"Nub"]),
        expect!["its pickle is not valid at byte 47: attribute `__class__` is set on a dict"],
    );
    // Reading all of them a million times would take hours.
    refused(
        &pickle(&[b"}}(", &[text("_metadata"), b"N".to_vec()].concat().repeat(2), b"ub"]),
        expect!["its pickle is not valid at byte 36: attribute `_metadata` is set on a dict"],
    );
    refused(&pickle(&[REBUILD, b"}b"]), expect!["its pickle is not valid at byte 36: expected a list or a dict"]);
    // A chain of rebuilds must not cause recursion.
    refused(
        &pickle(&[
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n)NtR",
        ]),
        expect![
            "its pickle is not valid at byte 94: torch._tensor._rebuild_from_type_v2 is called with arguments that torch.save does not write"
        ],
    );
}

#[test]
fn lengths_are_not_believed() {
    refused(&[], expect!["its pickle is truncated at byte 0"]);
    refused(b"\x80\x02}", expect!["its pickle is truncated at byte 3"]);
    refused(b"\x80\x02X\xff\xff\xff\xffabc.", expect!["its pickle is truncated at byte 11"]);
    refused(
        b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        expect![
            "its pickle has opcode 0x8d at byte 2, which is not supported: checkpoints of plain tensors never use it"
        ],
    );
    refused(
        b"\x80\x02\x8a\x09123456789.",
        expect!["its pickle is not valid at byte 2: a whole number has more than 64 bits"],
    );
    refused(
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        expect![
            "its pickle has opcode 0x8b at byte 2, which is not supported: checkpoints of plain tensors never use it"
        ],
    );
    refused(
        b"\x80\x07N.",
        expect!["its pickle is not valid at byte 0: protocol 7 is not supported; torch.save writes 2"],
    );
    refused(
        &[b"c".as_slice(), &[b'x'; 300]].concat(),
        expect!["its pickle has more than 256 bytes in the name of a class at byte 0"],
    );
    refused(b"ctorch", expect!["its pickle is truncated at byte 6"]);
    refused(
        &vec![b'N'; 1 + MAX_PICKLE_BYTES as usize],
        expect!["its pickle of 67108865 bytes is longer than the limit of 67108864"],
    );
}

#[test]
fn limits_hold() {
    refused(&vec![b'N'; 1 << 20], expect!["its pickle has more than 262144 values on its stack at byte 262144"]);
    refused(&[b'('; 100], expect!["its pickle has more than 64 levels at byte 64"]);
    // Lists nested with opcodes that need no mark.
    refused(&[b"]".repeat(100), b"a".repeat(99)].concat(), expect!["its pickle has more than 64 levels at byte 163"]);
    refused(&[b")".as_slice(), &[0x85; 100]].concat(), expect!["its pickle has more than 64 levels at byte 64"]);
    // A list that contains itself.
    refused(
        &[b"]q\x00".as_slice(), &b"h\x00a".repeat(100)].concat(),
        expect!["its pickle has more than 64 levels at byte 194"],
    );
    // The same value read again and again, as in the billion laughs attack.
    let bomb =
        [b"Nq\x00".as_slice(), &[b"](".as_slice(), &b"h\x00".repeat(100_000), b"e"].concat().repeat(30)].concat();
    refused(&bomb, expect!["its pickle has more than 2097152 values at byte 4194325"]);
    refused(&b"]".repeat(200_000), expect!["its pickle is truncated at byte 200000"]);
    let objects = [b"](".as_slice(), &b")".repeat(200_000), b"e"].concat();
    refused(&objects.repeat(8), expect!["its pickle has more than 1048576 objects at byte 1048587"]);
    let mut memos = b"N".to_vec();
    for index in 0..=MAX_MEMO as u32 {
        memos.extend([b"r".as_slice(), &index.to_le_bytes()].concat());
    }
    refused(&memos, expect!["its pickle has more than 1048576 memo entries at byte 5242881"]);
}

#[test]
fn the_stack_is_guarded() {
    refused(b".", expect!["its pickle is not valid at byte 0: its stack is empty"]);
    refused(b"NN.", expect!["its pickle is not valid at byte 2: it ends with values left on its stack"]);
    refused(b"(N.", expect!["its pickle is not valid at byte 2: it ends with values left on its stack"]);
    refused(b"t.", expect!["its pickle is not valid at byte 0: there is no mark"]);
    refused(b"N(\x85.", expect!["its pickle is not valid at byte 2: its stack is empty"]);
    refused(b"h\x05.", expect!["its pickle is not valid at byte 0: memo 5 was never set"]);
    refused(b"q\x05.", expect!["its pickle is not valid at byte 0: its stack is empty"]);
    refused(b"NNa.", expect!["its pickle is not valid at byte 2: expected a list or a dict"]);
    refused(b"}Na.", expect!["its pickle is not valid at byte 2: only a list can be appended to"]);
    refused(
        b"]NNs.",
        expect![[
            r#"its pickle is not valid at byte 3: a dict's keys must be strings or whole numbers, each with a value"#
        ]],
    );
    refused(b"]K\x01Ns.", expect!["its pickle is not valid at byte 4: only a dict can be given items"]);
}

#[test]
fn tensors_must_fit_their_storage() {
    let check =
        |offset, shape: &[u8], strides: &[u8], expected| refused(&pickle(&[&tensor(offset, shape, strides)]), expected);
    check(
        3,
        b"K\x02K\x02\x86",
        b"K\x02K\x01\x86",
        expect![
            "its pickle is not valid at byte 128: a tensor of shape [2, 2] reaches beyond its storage of 6 numbers"
        ],
    );
    check(
        7,
        b"K\x00\x85",
        b"K\x01\x85",
        expect!["its pickle is not valid at byte 124: a tensor of shape [0] reaches beyond its storage of 6 numbers"],
    );
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f".as_slice();
    check(
        0,
        &[huge, huge, b"\x86"].concat(),
        &[huge, b"K\x01\x86"].concat(),
        expect![
            "its pickle is not valid at byte 152: a tensor of shape [9223372036854775807, 9223372036854775807] reaches beyond its storage of 6 numbers"
        ],
    );
    check(
        0,
        b"J\xff\xff\xff\xff\x85",
        b"K\x01\x85",
        expect!["its pickle is not valid at byte 127: a dimension or a stride is not a whole number of at least 0"],
    );
    check(
        0,
        b"K\x02\x85",
        b")",
        expect!["its pickle is not valid at byte 122: a tensor has 1 dimensions and 0 strides; at most 8 are allowed"],
    );
    check(
        0,
        b"(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t",
        b")",
        expect!["its pickle is not valid at byte 139: a tensor has 9 dimensions; at most 8 are allowed"],
    );
    refused(
        &pickle(&[&storage("../../x", 6)]),
        expect!["its pickle is not valid at byte 58: `../../x` is not the name of a storage"],
    );
    refused(&pickle(&[&text("storage"), b"Q"]), expect!["its pickle is not valid at byte 14: expected a tuple"]);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Pickle::parse(&bytes);
    }

    /// Known opcodes reach more code than random bytes.
    #[test]
    fn random_opcodes_never_panic(choice in prop::collection::vec((0_usize..34, any::<u8>()), 0..120)) {
        let mut bytes = vec![0x80, 2];
        for (which, byte) in choice {
            let part: Vec<u8> = match which {
                0..=13 => vec![b"(N\x88\x89)]}\x85\x86\x87taes"[which % 14]],
                14 => vec![b'u'], 15 => vec![b'R'], 16 => vec![b'b'], 17 => vec![b'Q'],
                18 => vec![b'K', byte], 19 => vec![b'q', byte % 8], 20..=22 => vec![b'h', byte % 8],
                23 => REBUILD.to_vec(), 24 => HOOKS.to_vec(), 25 => storage("0", byte),
                26 => tensor(byte % 8, b"K\x02\x85", b"K\x01\x85"),
                27 => b"ctorch._utils\n_rebuild_parameter\n".to_vec(),
                28 => b"ctorch._tensor\n_rebuild_from_type_v2\n".to_vec(),
                29 => b"ctorch\nTensor\n".to_vec(),
                30 => text("name"), 31 => vec![0x94], 32 => vec![0x93],
                _ => vec![byte],
            };
            bytes.extend(part);
        }
        bytes.push(b'.');
        let _ = Pickle::parse(&bytes);
    }
}
