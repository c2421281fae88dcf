"""Writes folders with tokenizers that were once read wrongly, rejected without help, or harmful,
and similar ones.

    python3 scripts/faults/tokenizers.py FOLDER [NAME...]
    python3 scripts/faults/tokenizers.py --compare FOLDER
    venv/bin/python scripts/faults/tokenizers.py --judge

The first form writes all of them, or the named ones. The second compares them with those in FOLDER:
the same files, keys and tensors. The third runs the installed transformers on each (version 4.57.6
or 5.24.0, with sentencepiece 0.2.3 and protobuf) and writes the results into
crates/lm/tests/tokenizers-made.json. The first two need only the standard library.
"""

import base64
import json
import shutil
import struct
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parent.parent.parent / "crates/lm/tests/tokenizers-made.json"
TEXT = (
    "the first layers of the reference model are inherited by the target model. the target model is trained on, and the "
    "layers that were inherited are trained with it. The quick brown fox jumps over the lazy dog. "
) * 3
# The texts that every tokenizer encodes.
LINES = [
    "", " ", "the target model", "The quick  brown fox.\n\nnew line", "  two spaces before", "trailing space ", "naïve café 日本 🦀",
    "<|im_start|>user\nhello<|im_end|>", "a <|im_start|> b  <|im_start|>  c", "x<|im_start|>y", "<|endoftext|>the<|endoftext|>",
    "<|begin_of_text|>the<|end_of_text|>", "</s> and <s> and <unk>", "<mask> masked <pad> [PAD]", "a <extra> b<extra>c <image> d",
    "THE <|IM_START|> lower", "don't you'LL it's", "tab\tand\r\nCRLF", "12345 6 789", "ﬁ ½ Å e\u0301", "the the the", "\u2581x \u2581 y",
]  # fmt: skip


def byte_characters():
    """Returns how byte-level tokenizers write each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(other)}


def merges_of(words, count):
    """Returns the merges that byte-pair encoding learns, most frequent first."""
    words = [list(word) for word in words]
    merges = []
    while len(merges) < count:
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def byte_level(special, merges=70):
    """Returns a vocabulary and its merges; the special tokens come first."""
    letters = byte_characters()
    words = ["".join(letters[byte] for byte in word.encode()) for word in TEXT.replace(" ", "\n ").split("\n")]
    learned = merges_of(words, merges)
    tokens = dict.fromkeys([*special, *letters.values(), *("".join(pair) for pair in learned)])
    return {token: at for at, token in enumerate(tokens)}, learned


def added(content, **flags):
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **usual, **flags}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def template(*single, ids):
    part = lambda name: {"Sequence": {"id": "A", "type_id": 0}} if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in single if name != "A"}
    return {"type": "TemplateProcessing", "single": [part(name) for name in single], "pair": pair, "special_tokens": special}


def tokenizer_json(vocabulary, merges, tokens, **parts):
    usual = {"normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL}
    bpe = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": [list(pair) for pair in merges],
    }  # fmt: skip
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens}
    return {**head, **usual, "model": bpe, **parts}


def llama_3(**parts):
    """Like Llama 3: three special tokens after the vocabulary, and the first of them before every
    text."""
    vocabulary, merges = byte_level([])
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    ids = {name: len(vocabulary) + at for at, name in enumerate(names)}
    split = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}
    usual = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {**BYTE_LEVEL, "use_regex": False}]},
        "post_processor": {"type": "Sequence", "processors": [{**BYTE_LEVEL, "trim_offsets": False}, template("<|begin_of_text|>", "A", ids=ids)]},
    }  # fmt: skip
    tokens = [{"id": ids[name], **added(name)} for name in names]
    return tokenizer_json(vocabulary, merges, tokens, **{**usual, **parts})


def gpt_2(**parts):
    vocabulary, merges = byte_level(["<|endoftext|>"])
    return tokenizer_json(vocabulary, merges, [{"id": 0, **added("<|endoftext|>")}], **parts)


LLAMA_3_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}


def write(folder, **files):
    """`a__json=value` becomes a.json; bytes and text are written as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        if value is None:
            continue
        content = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
        path = folder / name.replace("__", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def model_config(kind):
    return {
        "model_type": kind, "vocab_size": 700, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
    }  # fmt: skip


CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def json_case(name, tokenizer, config, kind="llama", **files):
    """A folder with a tokenizer.json."""
    made = lambda folder: write(folder, config__json=model_config(kind), tokenizer__json=tokenizer(), tokenizer_config__json=config, **files)
    CASES[name] = made


def fast(**more):
    return {**LLAMA_3_CONFIG, **more}


def decoder_of(*tokens, first=None):
    first = len(llama_3()["model"]["vocab"]) + 3 if first is None else first
    return {"added_tokens_decoder": {str(first + at): token for at, token in enumerate(tokens)}}


# C7: tokens that are defined outside the vocabulary.
START, END = added("<|im_start|>"), added("<|im_end|>")
json_case("added_only_in_config", llama_3, fast(**decoder_of(START)))
json_case("added_several_in_config", llama_3, fast(**decoder_of(START, END, added("<extra>", special=False, normalized=True))))
json_case("added_with_strips", llama_3, fast(**decoder_of(added("<|im_start|>", lstrip=True, rstrip=True), added("<extra>", single_word=True))))
json_case("added_beyond_a_hole", llama_3, fast(**decoder_of(START, first=400)))
json_case("added_behind_each_other", llama_3, fast(**decoder_of(END, START, first=500)))
json_case("added_with_other_flags", llama_3, fast(**decoder_of(added("<|end_of_text|>", lstrip=True, rstrip=True), first=327)))
json_case("added_in_anothers_place", llama_3, fast(**decoder_of(START, first=326)))
json_case("added_is_a_piece", llama_3, fast(**decoder_of(added("the", special=False))))
json_case("added_normalized", lambda: llama_3(normalizer={"type": "Lowercase"}), fast(**decoder_of(added("<|IM_START|>", special=False, normalized=True), added("<Extra>"))))
json_case("added_as_eos", llama_3, fast(eos_token="<|im_end|>", **decoder_of(START, END)))
json_case("eos_only_in_config", llama_3, fast(eos_token="<|im_end|>"))
json_case("eos_as_added_token", llama_3, fast(eos_token={"__type": "AddedToken", **added("<|im_end|>", lstrip=True)}))
json_case("pad_only_in_map", llama_3, fast(), special_tokens_map__json={"pad_token": "<pad>", "eos_token": "<|eot_id|>"})
json_case("map_beside_a_decoder", llama_3, fast(**decoder_of(START)), special_tokens_map__json={"pad_token": "<pad>", "eos_token": "<|eot_id|>"})
json_case("map_says_null", llama_3, fast(pad_token="<pad>"), special_tokens_map__json={"pad_token": None})
json_case("map_lists_texts", llama_3, fast(), special_tokens_map__json={"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
json_case("map_lists_tokens", llama_3, fast(), special_tokens_map__json={"additional_special_tokens": [START, END]})
json_case("added_tokens_json", llama_3, fast(), added_tokens__json={"<|im_start|>": 329, "<extra>": 330})
json_case("added_tokens_json_special", llama_3, fast(additional_special_tokens=["<|im_start|>"]), added_tokens__json={"<|im_end|>": 329, "<|im_start|>": 330})
json_case("added_tokens_json_beside_a_decoder", llama_3, fast(**decoder_of(START)), added_tokens__json={"<extra>": 330})
json_case("additional_special_tokens", llama_3, fast(additional_special_tokens=["<|im_start|>", "<|im_end|>"]))
json_case("extra_special_tokens_list", llama_3, fast(extra_special_tokens=["<|im_start|>", "<|im_end|>"]))
json_case("extra_special_tokens_dict", llama_3, fast(extra_special_tokens={"image_token": "<image>", "start_token": "<|im_start|>"}))
json_case("extra_and_additional", llama_3, fast(extra_special_tokens=["<extra>"], additional_special_tokens=["<|im_start|>"]))
json_case("own_token_keys", llama_3, fast(image_token="<image>"))
json_case("split_special_tokens", llama_3, fast(split_special_tokens=True, **decoder_of(START)))
json_case("no_tokenizer_config", llama_3, None)
json_case("empty_roles", llama_3, fast(pad_token="", unk_token=None))

# Variants of tokenizer.json.
json_case("json_truncation_padding", lambda: gpt_2(
    truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
    padding={"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"},
), {"tokenizer_class": "PreTrainedTokenizerFast"})  # fmt: skip
json_case("json_prefix_space", lambda: gpt_2(pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}), {"tokenizer_class": "PreTrainedTokenizerFast"})
json_case("json_prefix_space_said", lambda: gpt_2(pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}), {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True})
json_case("config_prefix_space", gpt_2, {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True})
json_case("json_of_gpt2", gpt_2, {"tokenizer_class": "GPT2Tokenizer"}, "gpt2")
json_case("json_of_gpt2_prefix_space", gpt_2, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, "gpt2")
json_case("json_of_gpt2_with_a_normalizer", lambda: gpt_2(normalizer={"type": "NFKC"}), {"tokenizer_class": "GPT2TokenizerFast"}, "gpt2")
json_case("json_of_gpt2_with_a_split", lambda: llama_3(), fast(tokenizer_class="GPT2Tokenizer"), "gpt2")
json_case("json_of_gpt2_without_class", lambda: gpt_2(normalizer={"type": "NFKC"}), {}, "gpt2")
json_case("json_of_neox", lambda: gpt_2(normalizer={"type": "NFC"}), {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False}, "gpt_neox")
json_case("json_of_neox_without_normalizer", gpt_2, {"tokenizer_class": "GPTNeoXTokenizerFast"}, "gpt_neox")
json_case("json_of_opt", lambda: gpt_2(), {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<|endoftext|>"}, "opt")
json_case("json_of_mpt", lambda: gpt_2(normalizer={"type": "NFC"}), {"tokenizer_class": "GPTNeoXTokenizer"}, "mpt")
json_case("json_of_llama_class_byte_level", llama_3, fast(tokenizer_class="LlamaTokenizer"))
json_case("json_no_class_in_config", llama_3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})
json_case("json_nfkc_lowercase", lambda: llama_3(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}), fast())
json_case("json_strip_accents", lambda: llama_3(normalizer={"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Strip", "strip_left": True, "strip_right": True}]}), fast())
json_case("json_replace", lambda: llama_3(normalizer={"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}), fast())
json_case("json_digits", lambda: gpt_2(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}), {"tokenizer_class": "PreTrainedTokenizerFast"})
json_case("json_bos_and_eos", lambda: gpt_2(post_processor=template("<|endoftext|>", "A", "<|endoftext|>", ids={"<|endoftext|>": 0})), {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False})


def ignoring_merges():
    tokenizer = gpt_2()
    tokenizer["model"]["ignore_merges"] = True
    tokenizer["model"]["vocab"]["Ġmodel"] = len(tokenizer["model"]["vocab"])
    return tokenizer


def old_merges():
    tokenizer = gpt_2()
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    del tokenizer["model"]["type"]
    return tokenizer


def twice_merged():
    tokenizer = gpt_2()
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"] + tokenizer["model"]["merges"][:9]
    return tokenizer


def without_padding():
    tokenizer = gpt_2()
    tokenizer["model"]["dropout"] = 0.0
    return tokenizer


PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}
json_case("json_ignore_merges", ignoring_merges, PLAIN)
json_case("json_old_merges", old_merges, PLAIN)
json_case("json_duplicate_merges", twice_merged, PLAIN)
json_case("json_dropout_zero", without_padding, PLAIN)


def pieces():
    """Returns a vocabulary like Llama 2's: SentencePiece's pieces with their scores and types."""
    words = ["▁" + word for word in TEXT.split()]
    learned = merges_of(words, 60)
    tokens = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256))]
    merged = list(dict.fromkeys("".join(pair) for pair in learned))
    letters = sorted({letter for word in words for letter in word} - set(merged))
    scores = [*merged, *letters]
    return [*tokens, *((token, -float(at), 1) for at, token in enumerate(scores))], learned


def llama_2_json(**parts):
    found, learned = pieces()
    vocabulary = {token: at for at, (token, _, _) in enumerate(found)}
    tokens = [{"id": at, **added(name, normalized=False)} for at, name in enumerate(["<unk>", "<s>", "</s>"])]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
             "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary, "merges": [list(pair) for pair in learned]}  # fmt: skip
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    usual = {"normalizer": normalizer, "pre_tokenizer": None, "post_processor": template("<s>", "A", ids={"<s>": 1}), "decoder": decoder, "model": model}
    return tokenizer_json({}, [], tokens, **{**usual, **parts})


SPIECE_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
json_case("json_of_llama", llama_2_json, {"tokenizer_class": "PreTrainedTokenizerFast", **SPIECE_CONFIG})
json_case("json_of_llama_class", llama_2_json, {"tokenizer_class": "LlamaTokenizerFast", **SPIECE_CONFIG, "legacy": True})
json_case("json_of_llama_class_not_legacy", lambda: llama_2_json(normalizer=None, pre_tokenizer=METASPACE), {"tokenizer_class": "LlamaTokenizer", **SPIECE_CONFIG, "legacy": False})
json_case("json_of_llama_flags", llama_2_json, {"tokenizer_class": "LlamaTokenizer", **SPIECE_CONFIG, "legacy": True, "add_bos_token": False, "add_eos_token": True})
json_case("json_of_llama_chat", llama_2_json, {"tokenizer_class": "LlamaTokenizer", **SPIECE_CONFIG, "legacy": False, **decoder_of(START, END, first=len(pieces()[0]))})


def field(number, value):
    """Encodes one field of a protobuf message."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def sentencepiece_model(algorithm=2, extra=(), **normalizer):
    found = [*pieces()[0], *extra]
    piece = lambda text, score, kind: field(1, text.encode()) + field(2, score) + field(3, kind)
    trainer = field(3, algorithm) + field(4, len(found)) + field(35, 1)
    rules = {"remove_extra_whitespaces": 0, "add_dummy_prefix": 1, **normalizer}
    spec = field(1, b"identity") + field(3, rules["add_dummy_prefix"]) + field(4, rules["remove_extra_whitespaces"]) + field(5, 1)
    return b"".join(field(1, piece(*entry)) for entry in found) + field(2, trainer) + field(3, spec)


def model_case(name, config, file="tokenizer.model", model=sentencepiece_model, kind="llama", **files):
    def made(folder):
        write(folder, config__json=model_config(kind), tokenizer_config__json=config, **files)
        (folder / file).write_bytes(model())

    CASES[name] = made


LLAMA = {"tokenizer_class": "LlamaTokenizer", **SPIECE_CONFIG}
N_PIECES = len(pieces()[0])
model_case("sp_llama", LLAMA)
model_case("sp_llama_legacy", {**LLAMA, "legacy": True})
model_case("sp_llama_not_legacy", {**LLAMA, "legacy": False})
model_case("sp_llama_flags", {**LLAMA, "legacy": True, "add_bos_token": False, "add_eos_token": True})
for legacy in (True, False):
    name = "sp_llama_chat" if legacy else "sp_llama_chat_not_legacy"
    own = {str(at): added(token, normalized=False) for at, token in enumerate(["<unk>", "<s>", "</s>"])}
    beside = decoder_of(START, END, first=N_PIECES)["added_tokens_decoder"]
    model_case(name, {**LLAMA, "legacy": legacy, "added_tokens_decoder": {**own, **beside}, "eos_token": "<|im_end|>"})
model_case("sp_added_tokens_json", {**LLAMA, "legacy": True}, added_tokens__json={"<|im_start|>": N_PIECES, "<extra>": N_PIECES + 1})
model_case("sp_pad_in_map", {**LLAMA, "legacy": True}, special_tokens_map__json={"pad_token": "<pad>"})
model_case("sp_extra_list", {**LLAMA, "legacy": True, "additional_special_tokens": ["<|im_start|>"]})
model_case("sp_spiece_t5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<s>"}, "spiece.model", lambda: sentencepiece_model(1))


# vocab.json and merges.txt.
def pair(folder, config, vocabulary=None, merges=None, head="#version: 0.2\n", line="\n", kind="gpt2", mark=b"", vocabulary_mark=b"", **files):
    found, learned = byte_level(["<|endoftext|>"])
    merges = [" ".join(pair) for pair in learned] if merges is None else merges(learned)
    text = head.replace("\n", line) + line.join(merges) + line
    write(folder, config__json=model_config(kind), tokenizer_config__json=config, **files)
    (folder / "merges.txt").write_bytes(mark + text.encode())
    (folder / "vocab.json").write_bytes(vocabulary_mark + json.dumps(vocabulary or found, ensure_ascii=False).encode())


def pair_case(name, config={"tokenizer_class": "GPT2Tokenizer"}, **options):
    CASES[name] = lambda folder: pair(folder, config, **options)


GPT_2 = {"tokenizer_class": "GPT2Tokenizer"}
N_PAIR = len(byte_level(["<|endoftext|>"])[0])
pair_case("pair_plain")
pair_case("pair_merges_bom", mark=b"\xef\xbb\xbf")
pair_case("pair_vocab_bom", vocabulary_mark=b"\xef\xbb\xbf")
pair_case("pair_crlf", line="\r\n")
pair_case("pair_without_version", head="")
pair_case("pair_two_comments", head="#version: 0.2\n#another\n")
pair_case("pair_duplicate_merges", merges=lambda learned: [" ".join(pair) for pair in learned + learned[:9]])
pair_case("pair_empty_lines", merges=lambda learned: [" ".join(pair) for pair in learned] + ["", ""])
pair_case("pair_merge_of_three", merges=lambda learned: [" ".join(pair) for pair in learned] + ["t h e"])
pair_case("pair_unknown_merge", merges=lambda learned: [" ".join(pair) for pair in learned] + ["no where"])
pair_case("pair_spaces_at_ends", merges=lambda learned: [" ".join(pair) + " " for pair in learned])
pair_case("pair_prefix_space", {**GPT_2, "add_prefix_space": True})
pair_case("pair_bos", {**GPT_2, "add_bos_token": True})
pair_case("pair_eos", {**GPT_2, "add_eos_token": True})
pair_case("pair_decoder", {**GPT_2, **decoder_of(added("<|endoftext|>"), first=0), **{"eos_token": "<|endoftext|>"}})
pair_case("pair_decoder_beside", {**GPT_2, "added_tokens_decoder": {"0": added("<|endoftext|>"), str(N_PAIR): START, str(N_PAIR + 1): added("<extra>", special=False, normalized=True)}})
pair_case("pair_added_tokens_json", GPT_2, added_tokens__json={"<|im_start|>": N_PAIR, "<mask>": N_PAIR + 1})
pair_case("pair_pad", {**GPT_2, "pad_token": "<pad>"})
pair_case("pair_additional", {**GPT_2, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
pair_case("pair_opt", {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}, kind="opt")
pair_case("pair_without_config", {})
pair_case("pair_errors_key", {**GPT_2, "errors": "replace", "model_max_length": 4})


@case
def sp_is_tiktoken(folder):
    lines = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    write(folder, config__json=model_config("llama"), tokenizer__model=lines, tokenizer_config__json=PLAIN)


@case
def gpt2_vocab_txt_folder(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvw"), "the", "model", "target", "first"]
    config = {
        "activation_function": "gelu_new", "add_cross_attention": False, "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 0,
        "dtype": "float32", "embd_pdrop": 0.1, "eos_token_id": 0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_embd": 32, "n_head": 4, "n_inner": None, "n_layer": 4, "n_positions": 128, "pad_token_id": None, "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.1, "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "summary_activation": None,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "tie_word_embeddings": True, "transformers_version": "5.24.0", "use_cache": True, "vocab_size": 320,
    }  # fmt: skip
    generation = {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0, "output_attentions": False, "output_hidden_states": False,
                  "transformers_version": "5.24.0", "use_cache": True}  # fmt: skip
    write(folder, config__json=config, generation_config__json=generation, tokenizer_config__json={"tokenizer_class": "BertTokenizer"}, vocab__txt="\n".join(words) + "\n")
    (folder / "model.safetensors").write_bytes(gpt2_weights(320, 128, 32, 4))


def gpt2_weights(vocabulary, positions, width, layers):
    shapes = {"transformer.wte.weight": [vocabulary, width], "transformer.wpe.weight": [positions, width]}
    for layer in range(layers):
        block = {
            "ln_1.weight": [width], "ln_1.bias": [width], "attn.c_attn.weight": [width, 3 * width], "attn.c_attn.bias": [3 * width],
            "attn.c_proj.weight": [width, width], "attn.c_proj.bias": [width], "ln_2.weight": [width], "ln_2.bias": [width],
            "mlp.c_fc.weight": [width, 4 * width], "mlp.c_fc.bias": [4 * width], "mlp.c_proj.weight": [4 * width, width], "mlp.c_proj.bias": [width],
        }  # fmt: skip
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {"transformer.ln_f.weight": [width], "transformer.ln_f.bias": [width]}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [((at * 7919 + len(data)) % 2001 - 1000) / 25000 for at in range(count)]
        start, data = len(data), data + struct.pack(f"<{count}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# S2: parts of excessive cost.
def replacing(*contents):
    return {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": content} for content in contents]}


def splitting(pattern):
    return gpt_2(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})


HARMFUL = {
    "harm_nested_replace": lambda: gpt_2(normalizer=replacing("a" * 1000, "a" * 1000, "a" * 1000)),
    "harm_nested_prepend": lambda: gpt_2(normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 3000}, *replacing("a" * 3000)["normalizers"]]}),
    "harm_prepend": lambda: gpt_2(normalizer={"type": "Prepend", "prepend": "a" * 3_000_000}),
    "harm_replace_nothing": lambda: gpt_2(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}),
    "harm_nested_repetition": lambda: splitting("(a*)*$|(?:(?:a+)+)+b"),
    "harm_catastrophe": lambda: gpt_2(normalizer={"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}),
    "harm_deep_repetition": lambda: splitting("(" * 400 + "a" + "){1,9}" * 400),
    "harm_large_repetition": lambda: gpt_2(normalizer={"type": "Replace", "pattern": {"Regex": "((a{0,1000}){0,1000}){0,1000}b"}, "content": ""}),
    "harm_template": lambda: gpt_2(post_processor={**template("<|endoftext|>", "A", ids={"<|endoftext|>": 0}), "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0] * 300, "tokens": ["<|endoftext|>"] * 300}}}),
    "harm_byte_level_twenty_times": lambda: gpt_2(normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 20}),
    "harm_deep_sequence": lambda: json.loads('{"type": "Sequence", "normalizers": [' * 60 + '{"type": "NFC"}' + "]}" * 60) and gpt_2(normalizer=json.loads('{"type": "Sequence", "normalizers": [' * 60 + '{"type": "NFC"}' + "]}" * 60)),
    "harm_dropout": lambda: {**gpt_2(), "model": {**gpt_2()["model"], "dropout": 0.5}},
    "harm_look_behind": lambda: splitting("(?<=(a|aa|aaa)(a|aa|aaa)(a|aa|aaa)(a|aa|aaa))b"),
    "harm_back_reference": lambda: splitting("(a*)\\1\\1\\1\\1b"),
    "harm_cubic": lambda: splitting("a*a*a*b|a"),
    "harm_quadratic": lambda: splitting("a*a*b|a"),
    "harm_unknown_class": lambda: splitting("[\\p{Nowhere}]+"),
}  # fmt: skip
for name, tokenizer in HARMFUL.items():
    json_case(name, tokenizer, PLAIN)


def ids_of(folder):
    """Returns the installed transformers' results for a folder."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES]
        whole = [tokenizer(line)["input_ids"] for line in LINES]
    except BaseException as error:  # native libraries may raise anything
        return {"refused": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120].replace(str(folder), "FOLDER")}
    return {"class": type(tokenizer).__name__, "length": len(tokenizer), "eos": tokenizer.eos_token_id, "ids": plain, "with_added": whole}


def judge():
    # This file shadows a library that transformers needs.
    sys.path.pop(0)
    import transformers

    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"lines": LINES, "cases": {}}
    golden["lines"] = LINES
    with tempfile.TemporaryDirectory() as folder:
        for name, make in CASES.items():
            if name.startswith("harm_"):
                continue
            make(Path(folder) / name)
            golden["cases"].setdefault(name, {})[transformers.__version__] = ids_of(Path(folder) / name)
    golden["cases"] = {name: golden["cases"][name] for name in CASES if name in golden["cases"]}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(found)}" for name, found in golden["cases"].items())
    GOLDEN.write_text(f'{{"lines": {json.dumps(golden["lines"])},\n"cases": {{\n{lines}\n}}}}\n')


def compare(other):
    """Prints where a folder of the same name differs in its files, their keys or their tensors."""
    differences = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(set(CASES) & {path.name for path in other.iterdir()}):
            mine, theirs = Path(folder) / name, other / name
            CASES[name](mine)
            for path in sorted({p.name for p in mine.iterdir()} | {p.name for p in theirs.iterdir()}):
                if not (mine / path).exists() or not (theirs / path).exists():
                    print(f"{name}: {path} is in only one of them")
                    differences += 1
                elif shape_of(mine / path) != shape_of(theirs / path):
                    print(f"{name}: {path}: {shape_of(mine / path)} and {shape_of(theirs / path)}")
                    differences += 1
            print(f"{name}: compared")
    return differences


def shape_of(path):
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
        return {name: (tensor["dtype"], tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    if path.name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        return sorted(json.loads(content))
    return content[:3] == b"\xef\xbb\xbf"


def main():
    if sys.argv[1] == "--judge":
        return judge()
    if sys.argv[1] == "--compare":
        return sys.exit(1 if compare(Path(sys.argv[2])) else 0)
    for name in sys.argv[2:] or CASES:
        folder = Path(sys.argv[1]) / name
        shutil.rmtree(folder, ignore_errors=True)
        CASES[name](folder)


if __name__ == "__main__":
    main()
