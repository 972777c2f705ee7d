"""What docs/flink.md says of Flink's Docker image: its entrypoint takes the blanks out of FLINK_PROPERTIES."""

import contextlib
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from externalresource.flink import configuration
from tests.support.taskmanager import TaskManager, containers_are_permitted, granted, is_refused

PAGE = (Path(__file__).parents[2] / "docs" / "flink.md").read_text(encoding="utf-8")
[COMPOSE] = re.findall(r"^```yaml\n(# compose.yaml.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
ENVIRONMENT: dict[str, str] = yaml.safe_load(COMPOSE)["services"]["taskmanager"]["environment"]
ARGS = "external-resource.gpu.param.discovery-script.args"

# As the entrypoint of 1.20 to 2.3 does; the rest goes to Flink as -Dkey=value.
ENTRYPOINT = """\
while IFS= read -r property; do
    property=$(tr -d '[:space:]' <<<"$property")
    IFS=: read -r key value <<<"$property"
    [ "$key" ] && printf '%s=%s\\n' "$key" "$value"
done
true"""


def arguments(properties: str) -> list[str]:
    """Return with which arguments Flink starts the script that these properties name."""
    done = subprocess.run(["bash", "-c", ENTRYPOINT], input=properties, check=True, capture_output=True, text=True)
    [resource] = configuration.load({}, overrides=done.stdout.splitlines())
    return [str(resource.amount), *resource.options.get("discovery-script.args", "null").split()]


@pytest.mark.skipif(not containers_are_permitted(), reason="this system grants no pid namespaces")
def test_task_managers_in_docker_hold_disjoint_devices(tmp_path: Path) -> None:
    file = "EXTERNALRESOURCE_GPU_COORDINATION_FILE"
    ours = {name: value for name, value in ENVIRONMENT.items() if name.startswith("EXTERNALRESOURCE_")}
    assert ours[file].startswith("/srv/gpu/")
    variables = ours | {file: str(tmp_path / "coordination"), "EXTERNALRESOURCE_GPU_SIMULATE": "2"}
    words = arguments(ENVIRONMENT["FLINK_PROPERTIES"])
    with contextlib.ExitStack() as stack:
        environment = ["env", *(f"{name}={value}" for name, value in variables.items())]
        managers = [stack.enter_context(TaskManager(container=True, wrapper=environment)) for _ in range(3)]
        answers = [manager.tell("script", *words) for manager in managers]
        assert [granted(answer) for answer in answers[:2]] == ["0", "1"]
        assert is_refused(answers[2])


@pytest.mark.parametrize(
    "args", ["--coordination-file=/x --enable-coordination-mode", "--enable-coordination-mode --coordination-file /x"]
)
def test_options_in_flink_properties_are_refused_with_what_to_type(args: str) -> None:
    words = arguments(f"{ENVIRONMENT['FLINK_PROPERTIES']}{ARGS}: {args}\n")
    assert len(words) == 2
    with TaskManager(container=False) as manager:
        status, out, err = manager.tell("script", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "in FLINK_PROPERTIES of Flink's Docker image, set EXTERNALRESOURCE_GPU_" in err
