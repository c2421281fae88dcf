"""Tokenizing as a user of the tokenizers library writes it: what bench_tokenize.py holds the tokenize job against."""

import json
import sys
import time

import numpy
from tokenizers import Tokenizer

BATCH = 256


def main():
    corpus, tokenizer_file, out = sys.argv[1:]
    tokenizer = Tokenizer.from_file(tokenizer_file)
    end = tokenizer.token_to_id("<|endoftext|>")
    started, tokens = time.monotonic(), 0

    def write(file, texts):
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            numpy.array([*encoding.ids, end], dtype=numpy.uint16).tofile(file)
            yield len(encoding.ids) + 1

    with open(corpus) as rows, open(out, "wb") as file:
        texts = []
        for row in rows:
            texts.append(json.loads(row)["text"])
            if len(texts) == BATCH:
                tokens += sum(write(file, texts))
                texts = []
        tokens += sum(write(file, texts))
    print(json.dumps({"seconds": time.monotonic() - started, "tokens": tokens}))


if __name__ == "__main__":
    main()
