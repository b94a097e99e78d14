#!/bin/sh
# Prints the newest Python that the project runs with and that really starts (a shim of pyenv may not).
# With PYTHON set, that one or nothing.
supported='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'
for name in ${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3 python}; do
    path=$(command -v "$name") && "$path" -c "$supported" >/dev/null 2>&1 && echo "$path" && exit
done
if [ -n "$PYTHON" ]; then
    found=$("$PYTHON" --version 2>&1) || found="does not start"
    echo "PYTHON=$PYTHON: $found; this project runs with Python 3.11 to 3.14" >&2
    exit 1
fi
if command -v uv >/dev/null && path=$(uv python find --no-project '>=3.11,<3.15' 2>/dev/null); then
    echo "$path" && exit
fi
path=.venv/bin/python
"$path" -c "$supported" >/dev/null 2>&1 && echo "$path" && exit
found=$(python3 --version 2>/dev/null || python --version 2>/dev/null) || found="no Python at all"
echo "Python 3.11 to 3.14 is missing (found: $found): install one (Debian, Ubuntu: apt-get install python3 python3-venv;" \
    "macOS: brew install python; uv: uv python install 3.13), or name one: PYTHON=/path/to/python" >&2
exit 1
