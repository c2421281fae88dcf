"""Tokenizes as a user of the tokenizers library would: bench_tokenize.py compares the tokenize job
with this."""

import itertools
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
    with open(corpus) as rows, open(out, "wb") as file:
        while texts := [json.loads(row)["text"] for row in itertools.islice(rows, BATCH)]:
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                ids = [*encoding.ids, end]
                numpy.array(ids, dtype=numpy.uint16).tofile(file)
                tokens += len(ids)
    print(json.dumps({"seconds": time.monotonic() - started, "tokens": tokens}))


if __name__ == "__main__":
    main()
