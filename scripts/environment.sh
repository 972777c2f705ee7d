# Sourced by demo and test, which set `name` and `extras` first: makes .venv ready, with the project in it as a wheel.
# apache-flink gets .venv-flink: it wants older libraries than the tests, and a Python for which it has wheels.
# Set-up takes a minute on first use, a few seconds after a change of the sources, and nothing otherwise.

cd "$(dirname "$0")/.."
case $extras in
*flink*) venv=.venv-flink newest=12 pythons="Python 3.11 or 3.12" install="python3.12 python3.12-venv" ;;
*) venv=.venv newest=99 pythons="Python 3.11 or newer" install="python3 python3-venv" ;;
esac

die() {
    echo "$name: $*" >&2
    exit 1
}

find_python() {
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c "import sys; sys.exit(not 11 <= sys.version_info[1] <= $newest)" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "$pythons is missing: sudo apt-get install $install"
}

fingerprint() {
    find pyproject.toml README.md externalresource plugins -type f ! -name '*.pyc' -print0 | sort -z |
        xargs -0 sha256sum | sha256sum
}

set_up() {
    python=$(find_python) || exit 1
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "python3-venv is missing: sudo apt-get install python3-venv"
    echo "$name: setting up $venv (a minute on first use) ..." >&2
    [ -x "$venv/bin/pip" ] || "$python" -m venv --clear "$venv" || die "cannot make $venv"
    # Not editable: what is run and tested is the wheel that users get.
    rm -rf "$venv/wheel"
    pip wheel --no-deps --wheel-dir "$venv/wheel" .
    pip install --force-reinstall --no-deps "$venv"/wheel/*.whl
    pip install "$(echo "$venv"/wheel/*.whl)[$extras]"
}

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@" >"$venv/pip.log" 2>&1 && return
    tail -n 5 "$venv/pip.log" >&2
    die "pip $1 failed; all that it said is in $venv/pip.log"
}

wanted="$(fingerprint)"
exec 9>"$venv.lock" # two at once: the second waits until the first has set up
flock 9
if [ "$(cat "$venv/ready-$extras" 2>/dev/null)" != "$wanted" ]; then
    set_up
    echo "$wanted" >"$venv/ready-$extras"
fi
exec 9>&-
PATH="$PWD/$venv/bin:$PATH"
