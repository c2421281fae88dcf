#!/bin/sh
# Installs the built programs, libtorch, the Postgres that `make setup` fetched, and shell
# completions.
# usage: install.sh PREFIX      install.sh --uninstall PREFIX
#
# INSTALL_FROM  folder of the programs (target/release)
# DESTDIR       prefix of every path, for packages
set -eu
cd "$(dirname "$0")/../.."
uninstall=
[ "${1:-}" != --uninstall ] || { uninstall=yes; shift; }
prefix=${1:?usage: $0 [--uninstall] PREFIX}
case $prefix in /*) ;; *) echo "install: $prefix must be an absolute path" >&2; exit 2 ;; esac
from=${INSTALL_FROM:-target/release}
to=${DESTDIR:-}$prefix
own=$to/lib/inheritune
programs="inheritune inheritune-standalone inheritune-scheduler inheritune-slicer inheritune-trainer inheritune-evaluator"
bash_file=$to/share/bash-completion/completions/inheritune
zsh_file=$to/share/zsh/site-functions/_inheritune
fish_file=$to/share/fish/vendor_completions.d/inheritune.fish

if [ -n "$uninstall" ]; then
  for program in $programs; do rm -f "$to/bin/$program"; done
  rm -rf "$own"
  rm -f "$bash_file" "$zsh_file" "$fish_file"
  echo "removed from $to: the programs, $own and the completions; data folders are not removed"
  exit 0
fi

[ -x "$from/inheritune" ] || { echo "install: $from/inheritune is not built: run \`make install\`" >&2; exit 1; }
mkdir -p "$to/bin" "$own/bin" "$own/lib"
# Replace a program by renaming, so that a running one keeps the file that it was started from.
put() { cp -f "$1" "$2.part" && chmod 755 "$2.part" && mv -f "$2.part" "$2"; }
installed= needs_libtorch=
for program in $programs; do
  [ -x "$from/$program" ] || continue
  installed="$installed $program"
  if [ "$program" = inheritune ]; then
    put "$from/$program" "$to/bin/$program"
    continue
  fi
  put "$from/$program" "$own/bin/$program"
  needs_libtorch=yes
  # Programs find libtorch in ../lib and Postgres in ../postgres relative to themselves, so the
  # prefix may be moved.
  ln -sfn "../lib/inheritune/bin/$program" "$to/bin/$program"
done
if [ -n "$needs_libtorch" ]; then
  libtorch=${LIBTORCH:-.deps/libtorch}
  [ -d "$libtorch/lib" ] || { echo "install: $libtorch/lib is missing: run \`make setup\`" >&2; exit 1; }
  # Hard links if both are on one file system: it is half a gigabyte.
  for library in "$libtorch"/lib/*.so*; do
    cp -lf "$library" "$own/lib/" 2>/dev/null || cp -f "$library" "$own/lib/"
  done
  if [ -x .deps/postgres/pginstall/bin/postgres ]; then
    rm -rf "$own/postgres"
    cp -R .deps/postgres/pginstall "$own/postgres"
  fi
fi
mkdir -p "$(dirname "$bash_file")" "$(dirname "$zsh_file")" "$(dirname "$fish_file")"
"$from/inheritune" completions bash > "$bash_file"
"$from/inheritune" completions zsh > "$zsh_file"
"$from/inheritune" completions fish > "$fish_file"

case ":$PATH:" in
  *":$prefix/bin:"*) echo "installed in $prefix/bin, which is on the PATH:$installed" ;;
  *) echo "installed in $prefix/bin:$installed; it is not on the PATH: export PATH=\"$prefix/bin:\$PATH\"" ;;
esac
