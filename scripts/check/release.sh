#!/bin/sh
# Checks that this commit can become a release: one version everywhere, a dated section in
# CHANGELOG.md with upgrade notes, no landed migration edited, a clean tree, and a bill of materials.
set -eu
cd "$(dirname "$0")/../.."
fail() { echo "release-check: $*" >&2; exit 1; }
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
[ -z "$(git status --porcelain)" ] || fail "the tree has uncommitted changes"
grep -Eq "^## \[$version\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md ||
  fail "CHANGELOG.md has no dated section for $version"
sed -n "/^## \[$version\]/,/^## \[/p" CHANGELOG.md | grep -q '^### Upgrade notes' ||
  fail "the section for $version in CHANGELOG.md has no upgrade notes"
for lock in Cargo.lock fuzz/Cargo.lock; do
  grep -A1 '^name = "inheritune-domain"' "$lock" | grep -qx "version = \"$version\"" ||
    fail "$lock has another version of inheritune-domain than $version"
done
! git rev-parse -q --verify "refs/tags/v$version" >/dev/null || fail "the tag v$version exists already"
last=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)
if [ -n "$last" ]; then
  edited=$(git diff --name-only --diff-filter=MD "$last" -- migrations)
  [ -z "$edited" ] || fail "migrations of $last were edited: $edited"
fi
python3 scripts/check/sbom.py target/sbom.cdx.json
echo "release-check: $version is ready; tag it with: git tag -s v$version"
