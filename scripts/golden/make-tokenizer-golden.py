"""Writes crates/lm/tests/tokenizers: lines of text, tokenizers of the three kinds, and the results
of their references.

    python3 -m venv venv && venv/bin/pip install sentencepiece==0.2.3 tokenizers==0.23.3 transformers==5.24.0 protobuf==7.36.2 django==5.2.19
    venv/bin/python scripts/golden/make-tokenizer-golden.py BOOKS TEST_MODEL
    venv/bin/python scripts/golden/make-tokenizer-golden.py --real FOLDER

The second form writes expected.json into each folder in FOLDER, each with the tokenizer of a real
model, for the existing lines. With INHERITUNE_TOKENIZERS=FOLDER the test reads them.

BOOKS is a folder of public-domain books in English as .txt; TEST_MODEL is
python/test/test_model.model of github.com/google/sentencepiece, a model that we did not train. The
rest of the text is Django's translations into about ninety languages, and lines designed to break
tokenizers. The models are trained on the lines, except the latter, so that they are small.

The reference is the sentencepiece library for tokenizer.model, and transformers for the others.
Digests are the first 16 digits of SHA-256 over a hundred lines: for each line its number of ids and
its ids, 4 bytes each, or its length and its text.
"""

import gzip
import hashlib
import io
import json
import random
import re
import shutil
import struct
import sys
from pathlib import Path

import django
import sentencepiece
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

DIRECTORY = Path(__file__).resolve().parents[2] / "crates/lm/tests/tokenizers"
CHUNK = 100
SPECIAL = [
    "</s>", "<s>", "<unk>", "<0x41>", "<0x0A>", "<|endoftext|>", "<pad>", "<mask>", "two words", "[INST]", "▁", "▁▁", "Ġ", "Ċ",
    " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\u2028", "\u0085", "\0", "\x01", "\x1b",
    "\x7f", "\ufffd", "\uffff", "\U0010ffff", "é", "e\u0301", "\u0301", "ﬁ", "①", "½", "Ⅷ", "ｶﾞ", "\u1100\u1161\u11a8", "각", "ß", "İ",
    "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇩", "\u202eabc\u202c", "שלום", "مرحبا", "नमस्ते", "สวัสดี", "你好", "１２３", "123456789", "0.1", "...", "it's", "'LL",
]  # fmt: skip


def translations():
    """Returns Django's messages in all its languages."""
    lines = []
    for file in sorted(Path(django.__file__).parent.rglob("LC_MESSAGES/django.po")):
        text = file.read_text(encoding="utf-8")
        said = []
        for match in re.finditer(r'^msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\n?)+)', text, re.M):
            line = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', match.group(1)))
            line = line.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
            if line and "Project-Id-Version" not in line:
                said.append(line)
        lines.append(said)
    rng = random.Random(1)
    return [line for said in lines for line in rng.sample(said, min(4, len(said)))]


def any_character(rng):
    first, last = rng.choice([(32, 127), (32, 127), (0, 32), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x30000)])
    return chr(rng.randrange(first, last))


def hostile(rng, lines):
    kind = rng.randrange(7)
    if kind == 0:
        return "".join(any_character(rng) for _ in range(rng.randrange(40)))
    if kind == 1:
        return "".join(rng.choice(SPECIAL) for _ in range(rng.randrange(1, 12)))
    if kind == 2:
        return rng.choice(SPECIAL + [any_character(rng)]) * rng.randrange(1, 60)
    if kind == 3:
        line = rng.choice(lines)
        return line[rng.randrange(len(line)) :]
    if kind == 4:
        return "".join(rng.choice("abAB12 ▁ .\n") for _ in range(rng.randrange(60)))
    words = rng.choice(lines).split() or [""]
    if kind == 5:
        return "".join(rng.choice([rng.choice(words), rng.choice(SPECIAL), " " * rng.randrange(1, 6)]) for _ in range(12))
    return " " * rng.randrange(4) + (" " * rng.randrange(1, 4)).join(words) + " " * rng.randrange(4)


def make_lines(books):
    rng = random.Random(2)
    prose = [line.strip() for file in sorted(Path(books).glob("*.txt")) for line in file.read_text(errors="ignore").split("\n")]
    prose = rng.sample([line for line in prose if 20 < len(line) < 400], 3000)
    real = prose + translations()
    long = ["a" * 4096, "ab" * 2048, " " * 4096, "▁" * 1400, "日本" * 700, "é" * 2048, "\0" * 4096, "word " * 800, "🦀" * 1024]
    planes = ["".join(chr(c) for c in range(start, start + 64)) for start in [*range(0, 0xD800, 64), *range(0xE000, 0x10000, 64)]]
    return real, ["", *long, *planes, *(hostile(rng, real) for _ in range(3500))]


# Some of NFKC and of the library's own rules for spaces: the whole table is 240 kB.
RULES = {"\u00a0": " ", "\u3000": " ", "\t": " ", "\n": " ", "\r": " ", "\u200b": "", "ﬁ": "fi", "①": "1", "½": "1⁄2", "Ⅷ": "VIII",
         "e\u0301": "é", "ｶ": "カ", "ｶﾞ": "ガ", "\u1100\u1161": "가", "\u1100\u1161\u11a8": "각", "İ": "i", "\u2028": "  "}  # fmt: skip
RULES |= {chr(0xFEE0 + c): chr(c) for c in range(0x21, 0x7F)}


def train_sentencepiece(folder, lines, **options):
    rules = folder / "rules.tsv"
    if options.pop("rules", False):
        code = lambda text: " ".join(f"{ord(c):X}" for c in text)
        rules.write_text("".join(f"{code(a)}\t{code(b)}\n" for a, b in RULES.items()))
        options["normalization_rule_tsv"] = str(rules)
    else:
        options["normalization_rule_name"] = "identity"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in lines if "\0" not in line), model_writer=model, num_threads=1, minloglevel=2,
        max_sentence_length=10_000, hard_vocab_limit=False, **options,
    )  # fmt: skip
    rules.unlink(missing_ok=True)
    return sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())


def write_model(folder, proto):
    # The trainer's input is not part of the case.
    del proto.trainer_spec.input[:]
    proto.trainer_spec.ClearField("model_prefix")
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString(deterministic=True))


def sentencepiece_llama(folder, lines):
    proto = train_sentencepiece(
        folder, lines, model_type="bpe", vocab_size=1500, byte_fallback=True, split_digits=True, character_coverage=0.98,
        allow_whitespace_only_pieces=True, remove_extra_whitespaces=False,
    )  # fmt: skip
    write_model(folder, proto)
    token = lambda content: {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False}
    config = {"bos_token": token("<s>"), "eos_token": token("</s>"), "pad_token": None, "tokenizer_class": "LlamaTokenizer"}
    write_json(folder / "tokenizer_config.json", config)


def sentencepiece_openllama(folder, lines):
    """A model that drops leading, trailing and repeated spaces and normalizes text, which
    conversions get wrong."""
    proto = train_sentencepiece(
        folder, lines, model_type="bpe", vocab_size=1500, byte_fallback=True, split_digits=True, character_coverage=0.98, rules=True
    )  # fmt: skip
    write_model(folder, proto)
    write_json(folder / "tokenizer_config.json", {"add_bos_token": True, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"})


def sentencepiece_bpe_unused(folder, lines):
    """Pieces that are unused, user-defined, or contain a space; unknown characters are one
    piece."""
    proto = train_sentencepiece(
        folder, lines, model_type="bpe", vocab_size=1200, character_coverage=0.98, rules=True, remove_extra_whitespaces=False,
        user_defined_symbols=["<mask>", "▁▁▁", "two▁words", "ing", "日"],
    )  # fmt: skip
    normal = [piece for piece in proto.pieces if piece.type == piece.NORMAL and len(piece.piece) > 1]
    for piece in normal[::9]:
        piece.type = piece.UNUSED
    write_model(folder, proto)


def sentencepiece_bpe_suffix(folder, lines):
    """Spaces at the end of words."""
    proto = train_sentencepiece(
        folder, lines, model_type="bpe", vocab_size=1000, character_coverage=0.98, treat_whitespace_as_suffix=True
    )  # fmt: skip
    write_model(folder, proto)
    write_json(folder / "tokenizer_config.json", {"add_bos_token": False})


def sentencepiece_unigram(folder, lines):
    proto = train_sentencepiece(
        folder, lines, model_type="unigram", vocab_size=1500, character_coverage=0.98, rules=True,
        user_defined_symbols=["<mask>", "▁▁▁", "two▁words", "ing", "日"],
    )  # fmt: skip
    normal = [piece for piece in proto.pieces if piece.type == piece.NORMAL and len(piece.piece) > 1]
    for piece in normal[::15]:
        piece.type = piece.UNUSED
    # Integers create ties.
    for piece in normal[1::3]:
        piece.score = round(piece.score)
    write_model(folder, proto)


def sentencepiece_unigram_bytes(folder, lines):
    proto = train_sentencepiece(
        folder, lines, model_type="unigram", vocab_size=1200, character_coverage=0.98, byte_fallback=True, add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )  # fmt: skip
    write_model(folder, proto)


def sentencepiece_google(folder, lines):
    shutil.copy(sys.argv[2], folder / "tokenizer.model")


def train_byte_level(lines, special):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def json_gpt2(folder, lines):
    tokenizer = train_byte_level(lines, ["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def json_gpt_neox(folder, lines):
    """NFC and added tokens: runs of spaces, and one that includes the space before it."""
    tokenizer = train_byte_level(lines, ["<|endoftext|>", "<|padding|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    tokenizer.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    bos = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])
    tokenizer.save(str(folder / "tokenizer.json"))


def pair_of(folder, tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def pair_gpt2(folder, lines):
    pair_of(folder, train_byte_level(lines, ["<|endoftext|>"]))


def pair_opt(folder, lines):
    pair_of(folder, train_byte_level(lines, ["<s>", "<pad>", "</s>", "<unk>"]))
    token = lambda content: {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    named = {"bos_token": token("</s>"), "eos_token": token("</s>"), "unk_token": token("</s>")}
    config = {name: value | {"__type": "AddedToken"} for name, value in named.items()}
    config |= {"pad_token": "<pad>", "add_prefix_space": False, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", named | {"pad_token": "<pad>"})
    write_json(folder / "added_tokens.json", {"<mask>": 1500})


CASES = [sentencepiece_llama, sentencepiece_openllama, sentencepiece_bpe_unused, sentencepiece_bpe_suffix, sentencepiece_unigram,
         sentencepiece_unigram_bytes, sentencepiece_google, json_gpt2, json_gpt_neox, pair_gpt2, pair_opt]  # fmt: skip


def write_json(file, value):
    file.write_text(json.dumps(value, ensure_ascii=False) + "\n")


def reference(folder):
    """Returns the reference's name, and its functions from text to ids, to ids with added tokens,
    and from ids to text."""
    if (folder / "tokenizer.model").exists():
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text()) if file.exists() else {}
        added = {"add_bos": config.get("add_bos_token", True), "add_eos": config.get("add_eos_token", False)}
        decode = lambda ids: model.decode(ids) if ids else ""
        return f"sentencepiece {sentencepiece.__version__}", model.encode, lambda line: model.encode(line, **added), decode
    kind = transformers.PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else transformers.GPT2Tokenizer
    tokenizer = kind.from_pretrained(folder)
    ids = lambda line, added: tokenizer(line, add_special_tokens=added)["input_ids"]
    decode = lambda ids: tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    name = f"transformers {transformers.__version__} on tokenizers {tokenizers.__version__}"
    return name, lambda line: ids(line, False), lambda line: ids(line, True), decode


def digests(items):
    packed = [struct.pack("<I", len(item)) + (item if isinstance(item, bytes) else struct.pack(f"<{len(item)}I", *item)) for item in items]
    chunks = [b"".join(packed[start : start + CHUNK]) for start in range(0, len(packed), CHUNK)]
    return [hashlib.sha256(chunk).hexdigest()[:16] for chunk in chunks]


def write_expected(folder, lines):
    name, encode, encode_with_added, decode = reference(folder)
    ids = [encode(line) for line in lines]
    expected = {
        "reference": name,
        "tokens": sum(map(len, ids)),
        "ids": digests(ids),
        "ids_with_added": digests([encode_with_added(line) for line in lines]),
        "decoded": digests([decode(line_ids).encode() for line_ids in ids]),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(folder.name, expected["tokens"], "tokens", sum(file.stat().st_size for file in folder.iterdir()), "bytes")


def main():
    if sys.argv[1] == "--real":
        lines = [json.loads(line) for line in gzip.decompress((DIRECTORY / "lines.jsonl.gz").read_bytes()).decode().split("\n")[:-1]]
        for folder in sorted(Path(sys.argv[2]).iterdir()):
            if folder.is_dir():
                write_expected(folder, lines)
        return
    real, broken = make_lines(sys.argv[1])
    lines = real + broken
    DIRECTORY.mkdir(exist_ok=True)
    packed = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    (DIRECTORY / "lines.jsonl.gz").write_bytes(gzip.compress(packed, mtime=0))
    print(len(lines), "lines,", len(packed), "bytes")
    for case in CASES:
        folder = DIRECTORY / case.__name__.replace("_", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        case(folder, real)
        write_expected(folder, lines)


if __name__ == "__main__":
    main()
