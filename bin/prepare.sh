# Sourced by bin/hvcompress and bin/test, which set $root. Makes sure that $root/.venv holds the package.

# prepare package|test: return at once when the stamp says that .venv is up to date, else run bin/prepare.py.
prepare() {
    # The path is part of the stamp because an editable installation points to it: a moved checkout installs again.
    stamp="$root
$(cd "$root" && cksum pyproject.toml constraints.txt)"
    if [ -x "$root/.venv/bin/python" ] && [ -r "$root/.venv/.stamp-$1" ] &&
        [ "$(cat "$root/.venv/.stamp-$1")" = "$stamp" ]; then
        return 0
    fi
    find_python
    # Standard output stays free for `hvcompress decode ... -o -`, standard input for `hvcompress encode -`.
    "$python" -I "$root/bin/prepare.py" "$root" "$1" "$stamp" </dev/null >&2 || exit $?
}

# Sets $python to the first Python that is new enough and can make virtual environments, or exits with one line.
find_python() {
    trouble="no Python 3.10 or newer found on PATH; install one, or name it in HVCOMPRESS_PYTHON"
    there=
    [ -f "$root/.venv/pyvenv.cfg" ] && there=yes  # made by hand, perhaps, and with nothing left to make
    for python in ${HVCOMPRESS_PYTHON:+"$HVCOMPRESS_PYTHON"} \
        python3 python3.13 python3.12 python3.11 python3.14 python3.10 python "$root/.venv/bin/python"; do
        answer=0
        "$python" -I -c '
import sys
if sys.version_info < (3, 10) or sys.maxsize < 2**32:
    sys.exit(3)
if sys.argv[1:]:
    sys.exit(0)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(4)
' ${there:+"$there"} </dev/null >/dev/null 2>&1 || answer=$?
        case $answer in
            0) return 0 ;;
            4) trouble="$python cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)" ;;
        esac
        if [ -n "${HVCOMPRESS_PYTHON:-}" ]; then  # a wish that cannot be met is an error, not a hint
            [ $answer -eq 4 ] || trouble="HVCOMPRESS_PYTHON=$python is not a 64-bit Python 3.10 or newer"
            break
        fi
    done
    echo "hvcompress: $trouble" >&2
    exit 69
}
