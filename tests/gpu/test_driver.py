"""The GPU driver in this process, and its discovery scripts as real ones."""

import fcntl
import os
import pickle
import sysconfig
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import pytest

from externalresource.api import ExternalResourceInfo
from externalresource.drivers.loading import create_driver
from externalresource.errors import ConfigurationError, CoordinationError, DiscoveryError
from externalresource_gpu.driver import GPUDriver, GPUDriverFactory, GPUInfo
from externalresource_gpu.foreign_script import _is_ours

INSTALLED = Path(sysconfig.get_path("scripts")) / "nvidia-gpu-discovery"
COORDINATED = {"simulate": "4", "enable-coordination-mode": "true"}

# Flink's protocol, as its own script has it: what it does not know it ignores, `--name=value` among it.
FLINKS = """
amount=$1
shift
while [ $# -gt 0 ]; do
  case $1 in
    --enable-coordination-mode) coordinated=yes ;;
    --coordination-file) file=$2; shift ;;
  esac
  shift
done
granted=
for index in 0 1 2 3; do
  [ $amount -gt 0 ] || break
  if [ "$coordinated" ]; then
    grep -q "^$index " "$file" && continue
    echo $index $PPID >> "$file"
  fi
  granted=${granted:+$granted,}$index amount=$((amount - 1))
done
[ $amount -eq 0 ] || { echo "Could not get enough GPU resources."; exit 1; }
echo $granted
"""

Script = Callable[..., str]


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The coordination file, in an environment where nobody has set anything else."""
    for name in os.environ:
        if name.startswith(("EXTERNALRESOURCE_", "FLINK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_COORDINATION_FILE", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write somebody's discovery script; what it returns is the script's path."""

    def write(text: str, name: str = "somebodys.sh", mode: int = 0o755, first: str = "#!/bin/sh\n") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{first}{text}\n")
        path.chmod(mode)
        return str(path)

    return write


def foreign(path: str, **options: str) -> GPUDriver:
    """Return the driver of that script; `args` and `timeout` are those of discovery-script."""
    given = {f"discovery-script.{name}": value for name, value in options.items()}
    return GPUDriver({"discovery-script.path": path} | given)


def values(infos: Iterable[ExternalResourceInfo], key: str = "index") -> list[str | None]:
    return sorted((info.get_property(key) for info in infos), key=str)


def retrieved(driver: GPUDriver, amount: int) -> list[str | None]:
    return values(driver.retrieve_resource_info(amount))


def claimed(ledger: Path) -> list[tuple[str, int]]:
    rows = [line.split(" ", 2) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return [(row[0], int(row[1])) for row in rows]


def mine(*tokens: str) -> list[tuple[str, int]]:
    return [(token, os.getpid()) for token in tokens]


def failure(driver: GPUDriver, amount: int = 2) -> str:
    with pytest.raises(DiscoveryError) as caught:
        driver.retrieve_resource_info(amount)
    return one_line(caught.value)


def refusal(options: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        GPUDriver(options)
    return one_line(caught.value)


def one_line(error: Exception) -> str:
    message = str(error)
    assert "\n" not in message
    assert len(message) < 2500
    return message


def in_a_forked_child(call: Callable[[], object]) -> int:
    """Return the exit status of a fork of this process that has called it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def eventually(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


# ---- infos ----------------------------------------------------------------------------------------

INFO = {"index": "3", "uuid": "GPU-a"}


def test_infos_are_equal_if_all_their_properties_are() -> None:
    assert GPUInfo(INFO) == GPUInfo(dict(reversed(INFO.items())))
    assert GPUInfo(INFO) != GPUInfo(INFO | {"name": "A100"})
    assert GPUInfo(INFO) != GPUInfo(INFO | {"uuid": "GPU-b"})
    assert GPUInfo(INFO) != INFO
    assert len({GPUInfo(INFO), GPUInfo(dict(reversed(INFO.items()))), GPUInfo({"index": "3"})}) == 2


def test_info_tells_what_is_known_and_none_of_the_rest() -> None:
    info = GPUInfo(INFO)
    assert (info.get_property("index"), info.get_property("uuid"), info.get_property("name")) == ("3", "GPU-a", None)
    assert list(info.get_keys()) == ["index", "uuid"]
    assert repr(info) == "GPU Device(3)"


def test_info_keeps_nothing_of_the_mapping_that_it_was_made_of() -> None:
    properties = dict(INFO)
    info = GPUInfo(properties)
    properties["index"] = "4"
    assert info == GPUInfo(INFO)


def test_info_survives_the_way_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(GPUInfo(INFO))) == GPUInfo(INFO)


# ---- our own script -------------------------------------------------------------------------------


def test_our_own_script_is_the_default_and_says_all_that_is_known() -> None:
    infos = GPUDriver({"simulate": "dgx-a100"}).retrieve_resource_info(2)
    assert values(infos) == ["0", "1"]
    assert values(infos, "name") == ["NVIDIA A100-SXM4-40GB"] * 2
    assert values(infos, "memory.total") == ["40960"] * 2
    assert values(infos, "pci.bus_id") == ["00000000:07:00.0", "00000000:0F:00.0"]
    assert all(str(uuid).startswith("GPU-") for uuid in values(infos, "uuid"))


@pytest.mark.parametrize("names", [("gpu",), ("org.apache.flink.externalresource.gpu.GPUDriverFactory",)])
def test_plugin_is_found_by_its_name_and_by_flinks(names: tuple[str]) -> None:
    assert len(create_driver(*names, {"simulate": "2"}).retrieve_resource_info(2)) == 2


def test_factory_makes_a_driver_of_its_options() -> None:
    driver = GPUDriverFactory().create_external_resource_driver({"simulate": "1"})
    assert retrieved(driver, 1) == ["0"]


def test_arguments_are_split_as_a_shell_would_and_options_win_over_them(tmp_path: Path) -> None:
    other = tmp_path / "with blank"
    args = f"--simulate 2 --enable-coordination --coordination-file '{other}' null"
    driver = GPUDriver({"discovery-script.args": args, "simulate": "4"})
    assert retrieved(driver, 3) == ["0", "1", "2"]
    assert claimed(other) == mine("0", "1", "2")


def test_environment_serves_where_no_option_is_given(monkeypatch: pytest.MonkeyPatch, ledger: Path) -> None:
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_SIMULATE", "3")
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_ENABLE_COORDINATION", "true")
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_FORMAT", "spark")
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_AMOUNT", "1")
    assert retrieved(GPUDriver({}), 2) == ["0", "1"]
    assert claimed(ledger) == mine("0", "1")
    assert retrieved(GPUDriver({"enable-coordination-mode": "false"}), 3) == ["0", "1", "2"]


def test_owner_is_this_process_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch, ledger: Path) -> None:
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_OWNER_PID", str(os.getppid()))
    driver = GPUDriver(COORDINATED | {"discovery-script.args": f"--owner-pid {os.getppid()} --format uuid"})
    assert retrieved(driver, 1) == ["0"]
    assert claimed(ledger) == mine("0")
    driver.close()
    assert claimed(ledger) == []


def test_path_of_our_own_script_is_ours(tmp_path: Path, ledger: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(INSTALLED)
    of_another_environment = tmp_path / "nvidia-gpu-discovery"
    of_another_environment.write_bytes(INSTALLED.read_bytes())
    of_another_environment.chmod(0o755)
    for path in (INSTALLED, link, of_another_environment):
        driver = GPUDriver(COORDINATED | {"discovery-script.path": str(path)})
        assert values(driver.retrieve_resource_info(1), "memory.total") == ["40960"]
        driver.close()
        assert claimed(ledger) == []


def test_script_that_cannot_be_read_is_not_taken_for_ours(tmp_path: Path) -> None:
    assert not _is_ours(str(tmp_path))  # root may read all but a folder


def test_refusal_of_our_own_script_is_the_error(ledger: Path) -> None:
    driver = GPUDriver(COORDINATED)
    assert failure(driver, 5) == "5 wanted, this host has 4"
    assert retrieved(driver, 3) == ["0", "1", "2"]
    assert failure(driver, 2).startswith(f"2 wanted, 1 of 4 free; held by pid {os.getpid()}")
    assert failure(GPUDriver({"simulate": "no.yaml"}), 1) == "no.yaml cannot be read: No such file or directory"
    assert claimed(ledger) == mine("0", "1", "2")


def test_all_devices_are_shown_whoever_holds_them(ledger: Path) -> None:
    driver = GPUDriver({"simulate": "one-lost", "enable-coordination-mode": "true"})
    driver.retrieve_resource_info(2)
    shown = driver.devices()
    assert values(shown) == list("01234567")
    assert [info.get_property("index") for info in shown if info.get_property("unusable")] == ["3"]
    assert claimed(ledger) == mine("0", "1")


def test_own_script_that_dies_before_it_says_a_word_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert failure(GPUDriver(COORDINATED)) == "the discovery script was ended by signal 9: it said nothing"


def test_answer_of_our_own_script_that_others_print_into_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello', flush=True)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "printed into our discovery script's answer: 'hello\\n[" in failure(GPUDriver({"simulate": "2"}))


# ---- what it holds --------------------------------------------------------------------------------


def test_claims_are_of_this_process_and_close_gives_them_back(ledger: Path) -> None:
    driver = GPUDriver(COORDINATED)
    assert [retrieved(driver, 2), retrieved(driver, 1)] == [["0", "1"], ["2"]]
    assert claimed(ledger) == mine("0", "1", "2")
    held = driver.held()
    assert [(holding.claim.token, holding.owner.pid, holding.living) for holding in held] == [
        (token, os.getpid(), True) for token in "012"
    ]
    driver.close()
    assert (claimed(ledger), list(driver.held())) == ([], [])


def test_close_gives_back_exactly_its_own(ledger: Path) -> None:
    first, second = GPUDriver(COORDINATED), GPUDriver(COORDINATED)
    assert [retrieved(driver, 1) for driver in (first, second, first)] == [["0"], ["1"], ["2"]]
    first.close()
    assert claimed(ledger) == mine("1")
    assert retrieved(second, 1) == ["0"]
    first.close()
    assert claimed(ledger) == mine("1", "0")
    second.close()
    assert claimed(ledger) == []


def test_close_tells_devices_apart_that_have_one_index(ledger: Path) -> None:
    # Two containers, say, that each count their GPUs from 0.
    first, second = (GPUDriver(COORDINATED | {"simulate": machine}) for machine in ("dgx-1", "dgx-a100"))
    assert [retrieved(first, 1), retrieved(second, 1)] == [["0"], ["0"]]
    second.close()
    assert claimed(ledger) == mine("0")
    first.close()
    assert claimed(ledger) == []


def test_closed_driver_can_retrieve_again(ledger: Path) -> None:
    driver = GPUDriver(COORDINATED)
    for _ in range(2):
        assert retrieved(driver, 4) == list("0123")
        driver.close()
    assert claimed(ledger) == []


def test_close_that_failed_can_be_repeated(ledger: Path) -> None:
    driver = GPUDriver(COORDINATED)
    driver.retrieve_resource_info(1)
    content = ledger.read_text()
    ledger.write_text("what is this\n")
    with pytest.raises(CoordinationError):
        driver.close()
    ledger.write_text(content)
    driver.close()
    assert claimed(ledger) == []


def test_without_coordination_nothing_is_held_and_nothing_given_back(ledger: Path) -> None:
    driver = GPUDriver({"simulate": "2"})
    assert retrieved(driver, 2) == ["0", "1"]
    assert list(driver.held()) == []
    driver.close()
    assert not ledger.exists()
    assert not Path(f"{ledger}.lock").exists()


def test_forked_child_gives_nothing_back(ledger: Path) -> None:
    driver = GPUDriver(COORDINATED)
    driver.retrieve_resource_info(2)
    assert in_a_forked_child(driver.close) == 0
    assert claimed(ledger) == mine("0", "1")
    driver.close()
    assert claimed(ledger) == []


def test_forked_child_gives_back_what_it_retrieved_itself(ledger: Path) -> None:
    driver = GPUDriver(COORDINATED)
    driver.retrieve_resource_info(2)

    def child() -> None:
        assert retrieved(driver, 1) == ["2"]
        assert [pid == os.getpid() for _, pid in claimed(ledger)] == [False, False, True]
        driver.close()

    assert in_a_forked_child(child) == 0
    assert claimed(ledger) == mine("0", "1")


# ---- variables for a process ----------------------------------------------------------------------


def infos(*indices: str, uuid: str = "") -> Collection[ExternalResourceInfo]:
    return [GPUInfo({"index": index} | ({"uuid": uuid + index} if uuid else {})) for index in indices]


@pytest.mark.parametrize(
    ("given", "mask"),
    [
        (infos("10", "9", "0", uuid="GPU-"), "GPU-0,GPU-9,GPU-10"),
        (infos("10", "9"), "9,10"),
        (infos("GPU-b", "7", "GPU-a", "1²"), "7,1²,GPU-a,GPU-b"),
        ([], ""),
    ],
)
def test_mask_holds_uuids_where_they_are_known_in_the_order_of_indices(
    given: Collection[ExternalResourceInfo], mask: str
) -> None:
    assert GPUDriver({}).environment(given) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": mask,
        "NVIDIA_VISIBLE_DEVICES": mask or "void",
    }


def test_script_of_a_checkout_is_known_as_ours() -> None:
    checkout = Path(__file__).parents[2]
    assert _is_ours(str(checkout / "scripts/nvidia-gpu-discovery"))


# ---- what is not allowed --------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0, -1])
def test_amount_is_positive(amount: int) -> None:
    with pytest.raises(ConfigurationError, match=f"must be a positive integer, not {amount}"):
        GPUDriver({}).retrieve_resource_info(amount)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("simulat", "simulate"),
        ("discovery-script.pth", "discovery-script.path"),
        ("enable-coordination", "enable-coordination-mode"),
        ("coordination_file", "coordination-file"),
    ],
)
def test_unknown_option_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    message = refusal({name: "1"})
    assert message.startswith(f"the GPU driver has no option {name!r} (allowed: discovery-script.path, ")
    assert message.endswith(f", did you mean {nearest!r}?")


@pytest.mark.parametrize("name", ["list", "format", "owner-pid", "amount"])
def test_what_the_driver_itself_decides_is_no_option(name: str) -> None:
    assert refusal({name: "1"}).startswith(f"the GPU driver has no option {name!r}")


@pytest.mark.parametrize("text", ["0", "-1", "soon", "", "nan", "inf", "86401", "10 s"])
def test_timeout_is_a_number_of_seconds_up_to_a_day(text: str) -> None:
    assert refusal({"discovery-script.timeout": text}) == (
        f"discovery-script.timeout must be a number of seconds, above 0 and at most 86400, not {text!r}"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"discovery-script.args": "--simulat 2"}, "unknown option '--simulat', did you mean '--simulate'?"),
        ({"discovery-script.args": "3"}, "unexpected argument '3': one amount is allowed, then options"),
        ({"discovery-script.args": "--help"}, "unknown option '--help'"),
        ({"timeout": "never"}, "option --timeout must be a number of seconds, above 0 and at most 86400, not 'never'"),
        ({"enable-coordination-mode": "yes"}, "option --enable-coordination-mode must be true or false, not 'yes'"),
        (
            {"discovery-script.args": "--simulate '2"},
            "discovery-script.args cannot be split as a shell would (No closing quotation): --simulate '2",
        ),
    ],
)
def test_arguments_that_our_script_would_refuse_are_refused_at_once(options: dict[str, str], reason: str) -> None:
    assert refusal(options) == reason


def test_listing_instead_of_handing_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "option --list hands out no devices: not for discovery-script.args, nor as EXTERNALRESOURCE_GPU_LIST"
    assert refusal({"discovery-script.args": "--list"}) == expected
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_LIST", "true")
    assert refusal({}) == expected


# ---- time -----------------------------------------------------------------------------------------


def test_our_own_script_says_itself_what_kept_it(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("exec sleep 600", "nvidia-smi")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    driver = GPUDriver({"backend": "nvidia-smi", "discovery-script.timeout": "1"})
    assert failure(driver).startswith("nvidia-smi did not answer within")


def test_our_own_script_gives_up_on_a_lock_that_is_held(ledger: Path) -> None:
    with open(f"{ledger}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = failure(GPUDriver(COORDINATED | {"timeout": "1"}))
    assert message.startswith(f"{ledger}.lock was not free in time")
    assert claimed(ledger) == []


@pytest.mark.parametrize(
    ("options", "variable", "scripts", "ours"),
    [
        ({}, None, 9.0, 10.0),
        ({"discovery-script.timeout": "0.5"}, None, 0.45, 1.45),
        ({"discovery-script.timeout": "100"}, None, 90.0, 100.0),
        ({"timeout": "60"}, None, 60.0, 61.0),
        ({"discovery-script.args": "--timeout 60"}, None, 60.0, 61.0),
        ({}, "60", 60.0, 61.0),
        ({"discovery-script.timeout": "20"}, "60", 18.0, 20.0),
    ],
)
def test_our_own_script_ends_before_it_would_be_killed(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], variable: str | None, scripts: float, ours: float
) -> None:
    if variable:
        monkeypatch.setenv("EXTERNALRESOURCE_GPU_TIMEOUT", variable)
    driver = GPUDriver(options)
    assert driver._options is not None
    assert (driver._options.timeout, driver._timeout) == (scripts, ours)


# ---- somebody else's script -----------------------------------------------------------------------


def test_somebodys_script_is_run_with_the_amount_and_the_arguments(tmp_path: Path, script: Script) -> None:
    path = script(f'for word in "$@"; do echo "$word"; done > {tmp_path}/words; echo 4,5')
    driver = foreign(path, args="""--a "b c" 'd  e' f\\ g $HOME * "" """)
    assert retrieved(driver, 2) == ["4", "5"]
    assert (tmp_path / "words").read_text().splitlines() == ["2", "--a", "b c", "d  e", "f g", "$HOME", "*", ""]


def test_options_reach_somebodys_script_as_words_that_flinks_own_understands(tmp_path: Path, script: Script) -> None:
    path = script(f'echo "$@" > {tmp_path}/words; echo 0')
    given = {"discovery-script.path": path, "discovery-script.args": "--mine"}
    GPUDriver(given | COORDINATED | {"coordination-file": "/a"}).retrieve_resource_info(1)
    words = (tmp_path / "words").read_text()
    assert words == "1 --mine --enable-coordination-mode --coordination-file /a --simulate 4\n"


def test_somebodys_script_is_found_where_flink_looks(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("echo 1", "home/bin/s.sh")
    script("echo 2", "here/bin/s.sh")
    monkeypatch.chdir(tmp_path / "here")
    assert retrieved(foreign("bin/s.sh"), 1) == ["2"]
    monkeypatch.setenv("FLINK_HOME", str(tmp_path / "home"))
    assert retrieved(foreign("bin/s.sh"), 1) == ["1"]
    assert retrieved(foreign(str(tmp_path / "here/bin/s.sh")), 1) == ["2"]


@pytest.mark.parametrize("path", ["plugins/gpu/s.sh", "gpu/s.sh"])
def test_somebodys_script_is_found_in_flinks_folder_of_plugins(
    tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    script("echo 3", "elsewhere/gpu/s.sh")
    monkeypatch.setenv("FLINK_PLUGINS_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("FLINK_HOME", str(tmp_path / "home"))
    assert retrieved(foreign(path), 1) == ["3"]
    script("echo 4", f"home/{path}")
    assert retrieved(foreign(path), 1) == ["4"]


def test_missing_script_is_refused_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = {"discovery-script.path": "plugins/s.sh"}
    monkeypatch.chdir(tmp_path)
    assert refusal(path) == (f"the discovery script plugins/s.sh does not exist; looked for {tmp_path}/plugins/s.sh")
    monkeypatch.setenv("FLINK_HOME", "/h")
    monkeypatch.setenv("FLINK_PLUGINS_DIR", "/p")
    assert refusal(path).endswith("looked for /h/plugins/s.sh and /p/s.sh")


@pytest.mark.parametrize("path", ["", "  "])
def test_empty_path_is_refused(path: str) -> None:
    assert refusal({"discovery-script.path": path}) == (
        "discovery-script.path is empty; leave it out to use our own script"
    )


def test_folder_is_no_script(tmp_path: Path) -> None:
    assert "is a directory" in refusal({"discovery-script.path": str(tmp_path)})


def test_script_that_is_not_executable_is_refused(script: Script) -> None:
    path = script("echo 0", mode=0o644)
    assert refusal({"discovery-script.path": path}) == (f"the discovery script {path} is not executable; chmod +x it")


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("", "Exec format error; its first line must name its interpreter, as #!/bin/sh does"),
        ("#!/no/such/shell\n", "No such file or directory; the interpreter in its first line does not exist"),
    ],
)
def test_script_that_cannot_be_run_is_an_error(script: Script, first: str, reason: str) -> None:
    path = script("echo 0", first=first)
    assert failure(foreign(path), 1) == f"{path} could not be run: {reason}"


def test_hanging_script_is_killed_with_all_that_it_started(tmp_path: Path, script: Script) -> None:
    path = script(f"sleep 600 & echo $! $$ > {tmp_path}/pids; wait")
    assert failure(foreign(path, timeout="2")) == (
        f"{path} did not answer within 2 s and was killed; see discovery-script.timeout"
    )
    pids = (tmp_path / "pids").read_text().split()
    assert eventually(lambda: all(ended(int(pid)) for pid in pids))


ANSWERS = [
    ("", "the discovery script printed nothing, not one line of devices: ''"),
    ("echo", "the discovery script printed nothing, not one line of devices: '\\n'"),
    ("echo '  '", "the discovery script printed nothing, not one line of devices: '  \\n'"),
    ("echo 0; echo 1", "the discovery script printed 2 lines, not one line of devices: '0\\n1\\n'"),
    ("echo; echo 0,1", "the discovery script printed 2 lines, not one line of devices: '\\n0,1\\n'"),
    ("echo 0", "the discovery script printed 1 devices, not the 2 asked for"),
    ("echo 0,1,2", "the discovery script printed 3 devices, not the 2 asked for"),
    ("echo ,,", "the discovery script printed 0 devices, not the 2 asked for"),
    ("echo 0,0", "the discovery script printed device '0' more than once: '0,0'"),
    ("echo 0,1,0", "the discovery script printed device '0' more than once: '0,1,0'"),
    ("echo 0,Unable,to", "the discovery script printed 'Unable', which is neither an index nor a UUID"),
    ("echo 0 1", "the discovery script printed '0 1', which is neither an index nor a UUID"),
    ("echo '[0,1]'", "the discovery script printed '[0', which is neither an index nor a UUID"),
    ("echo out; echo err >&2; exit 3", "{path} exited with 3: err"),
    ("echo out; echo more; exit 1", "{path} exited with 1: out more"),
    ("exit 4", "{path} exited with 4: it said nothing"),
    ("echo 0,1; kill -9 $$", "{path} was ended by signal 9: 0,1"),
]


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_wrong_answer_is_an_error_that_shows_it(script: Script, ledger: Path, text: str, expected: str) -> None:
    path = script(text)
    assert failure(foreign(path)) == expected.format(path=path)
    assert not ledger.exists()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("echo 0,1", ["0", "1"]),
        ("printf 1,0", ["0", "1"]),
        ("echo ' 3 ,, 12, '", ["12", "3"]),
        ("printf '0,1\\r\\n\\n\\n'", ["0", "1"]),
        ("echo GPU-5a,MIG-GPU-5a/1/0", ["GPU-5a", "MIG-GPU-5a/1/0"]),
        ("echo 0,1; sleep 30 &", ["0", "1"]),
    ],
)
def test_right_answer_may_be_untidy(script: Script, text: str, tokens: list[str]) -> None:
    assert retrieved(foreign(script(text)), 2) == tokens


MEGABYTE = "head -c 1000000 /dev/zero | tr '\\0' "


def test_chatty_script_is_read_to_its_end(script: Script) -> None:
    assert retrieved(foreign(script(f"{MEGABYTE} e >&2; echo 0,1")), 2) == ["0", "1"]


@pytest.mark.parametrize("last", ["exit 0", "exit 1"])
def test_megabyte_on_both_streams_is_an_error_that_is_short(script: Script, last: str) -> None:
    failure(foreign(script(f"{MEGABYTE} o; {MEGABYTE} e >&2; {last}")))


def test_hundred_thousand_devices_are_counted_at_once(script: Script) -> None:
    expected = "the discovery script printed 100000 devices, not the 2 asked for"
    assert failure(foreign(script("seq -s, 100000"))) == expected


def test_somebodys_script_tells_its_devices_only_when_asked_for_them(script: Script, ledger: Path) -> None:
    path = script("echo 0")
    driver = foreign(path)
    with pytest.raises(DiscoveryError, match=f"{path} cannot list devices"):
        driver.devices()
    with pytest.raises(DiscoveryError, match=f"{path} keeps its own books"):
        driver.held()
    assert driver.environment(driver.retrieve_resource_info(1))["CUDA_VISIBLE_DEVICES"] == "0"
    driver.close()
    assert not ledger.exists()


@pytest.mark.parametrize("by_option", [True, False], ids=["by option", "by argument"])
def test_flinks_own_script_coordinates_with_itself_and_with_ours(
    script: Script, ledger: Path, *, by_option: bool
) -> None:
    ledger.touch()
    mode = (
        {"enable-coordination-mode": "true", "coordination-file": str(ledger)}
        if by_option
        else {"discovery-script.args": f"--enable-coordination-mode --coordination-file {ledger}"}
    )
    flinks, ours = GPUDriver(mode | {"discovery-script.path": script(FLINKS)}), GPUDriver(COORDINATED)
    assert retrieved(flinks, 1) == ["0"]
    assert claimed(ledger) == mine("0")
    assert [retrieved(ours, 1), retrieved(flinks, 2)] == [["1"], ["2", "3"]]
    assert failure(flinks, 1).endswith("exited with 1: Could not get enough GPU resources.")
    assert failure(ours, 1).startswith("1 wanted, 0 of 4 free; held by")
    ours.close()
    assert claimed(ledger) == mine("0", "2", "3")


def test_descriptors_are_not_lost(script: Script) -> None:
    good, bad = foreign(script("echo 0,1")), foreign(script("exit 1", "bad.sh"))
    before = os.listdir("/proc/self/fd")
    good.retrieve_resource_info(2)
    failure(bad)
    assert os.listdir("/proc/self/fd") == before
