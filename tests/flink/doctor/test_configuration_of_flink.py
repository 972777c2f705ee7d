"""Each fault of a configuration that leaves a Flink cluster without GPUs is found with evidence and remedy."""

import pytest

from externalresource.flink.doctor import examination
from externalresource.flink.doctor.findings import ERROR, WARNING
from tests.support.flink.doctor import AMOUNT, ARGS, CLASS, FACTORY, PATH, Host, dead_pid, the


def test_nothing_is_found_where_nothing_is_wrong(host: Host) -> None:
    report = host.examine()
    assert report.findings == []
    assert report.summary.startswith(f"no problem found; looked at: configuration {host.config}, discovery script ")
    for part in (f"plugins folder {host.folder}/plugins", "devices of 'gpu'", f"coordination file {host.ledger}"):
        assert part in report.looked


def test_rest_api_that_is_not_there_is_not_looked_at_and_no_error(host: Host) -> None:
    [note] = host.examine().not_looked
    assert note.at == f"REST API http://localhost:{host.settings['rest.port']}"
    assert note.because == "Connection refused"


def test_looking_changes_nothing(host: Host) -> None:
    host.write()
    before = sorted(host.folder.rglob("*"))
    host.examine()
    assert sorted(host.folder.rglob("*")) == before


def test_misspelt_coordination_flag(host: Host) -> None:
    stock = host.folder / "plugins" / "external-resource-gpu" / "nvidia-gpu-discovery.sh"
    stock.write_text("#!/bin/sh\n")
    stock.chmod(0o755)
    found = the(host.examine({PATH: stock, ARGS: "--enable-coordination"}), "coordination-flag")
    assert found.severity == ERROR
    assert found.evidence == f"{host.line(ARGS)}{ARGS}: --enable-coordination"
    assert found.remedy.startswith("write --enable-coordination-mode instead of --enable-coordination")
    right = f"--enable-coordination-mode --coordination-file {host.ledger}"
    assert host.examine({ARGS: right}).findings == []
    assert the(host.examine({ARGS: "--cordination-file /x"}), "coordination-flag").remedy.startswith(
        "write --coordination-file instead of --cordination-file"
    )


def test_of_a_script_that_nobody_knows_only_flinks_documented_flag_is_told(host: Host) -> None:
    script = host.folder / "gpus.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    found = the(host.examine({PATH: script, ARGS: "--whatever --enable-coordination"}), "coordination-flag")
    assert found.severity == WARNING
    assert found.problem.startswith("a script may ignore --enable-coordination, ")
    assert found.remedy.startswith("write --enable-coordination-mode instead of --enable-coordination")


@pytest.mark.parametrize("name", ["gpus.sh", "nvidia-gpu-discovery.sh"])
def test_documented_flag_beside_the_right_one_is_no_problem(host: Host, name: str) -> None:
    script = host.folder / name
    script.touch(0o755)
    both = f"--enable-coordination --enable-coordination-mode --coordination-file {host.ledger}"
    assert host.examine({PATH: script, ARGS: both}).findings == []


def test_our_script_knows_flinks_documented_flag_and_refuses_others_itself(host: Host) -> None:
    assert host.examine({ARGS: f"--enable-coordination --coordination-file {host.ledger}"}).findings == []
    found = the(host.examine({ARGS: "--enable-cordination"}), "options")
    assert found.evidence.startswith(f"{host.line(ARGS)}{ARGS}: --enable-cordination: unknown option")


def test_two_resources_on_a_standalone_cluster(host: Host) -> None:
    fpga = {"external-resource.fpga.amount": 1, "external-resource.fpga.driver-factory.class": "com.example.FPGA"}
    host.plugin("fpga", "com.example.FPGA")
    found = the(host.examine({"external-resources": "gpu;fpga", **fpga}), "several-resources")
    assert found.severity == ERROR
    assert found.evidence.startswith(f"{host.line('external-resources')}external-resources: gpu;fpga; ")
    assert '-D external-resources="gpu;fpga"' in found.evidence
    assert "list one resource" in found.remedy
    assert host.examine({"execution.target": "kubernetes-application"}).findings == []


@pytest.mark.parametrize("script", ["ours", "flinks", "somebody's"])
@pytest.mark.parametrize(
    "lost",
    [
        "--enable-coordination-mode--coordination-file/x",
        "--enable-coordination-mode--coordination-file=/x",
        "--coordination-file=/x--enable-coordination-mode",
        "--coordination-file=/x--enable-coordination",
        "--coordination-file /x--enable-coordination-mode",
        "--timeout=4--enable-coordination-mode",
        "--enable-coordination-mode --policy=pack--coordination-file=/x",
        "--coordination-file/x",
    ],
)
def test_blanks_lost_in_flink_properties(host: Host, lost: str, script: str) -> None:
    others = {"flinks": host.folder / "plugins/gpu/nvidia-gpu-discovery.sh", "somebody's": host.folder / "gpus.sh"}
    if path := others.get(script):
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        (path.parent / "a.jar").touch()
        host.settings[PATH] = path
    [found] = [found for found in host.examine({ARGS: lost}).findings if found.check == "lost-blanks"]
    assert found.evidence == f"{host.line(ARGS)}{ARGS}: {lost}"
    assert "FLINK_PROPERTIES" in found.remedy
    assert "EXTERNALRESOURCE_GPU_ENABLE_COORDINATION_MODE=true" in found.remedy
    assert found.problem.endswith("no script understands")


def test_lost_blanks_are_told_once(host: Host) -> None:
    the(host.examine({ARGS: "--coordination-file=/x--enable-coordination-mode"}), "lost-blanks")


def test_blanks_lost_in_a_param(host: Host) -> None:
    param = {"external-resource.gpu.param.coordination-file": "/x--enable-coordination-mode"}
    report = host.examine({CLASS: "gpu", PATH: None, ARGS: None, **param})
    [found] = [found for found in report.findings if found.check == "options"]
    assert "the blank is missing before --enable-coordination-mode" in found.evidence


def test_second_option_in_a_variable(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_COORDINATION_FILE", "/x--enable-coordination-mode")
    found = the(host.examine({ARGS: None}), "options")
    assert "'EXTERNALRESOURCE_GPU_COORDINATION_FILE=/x--enable-coordination-mode' has a second option" in found.evidence
    assert "set EXTERNALRESOURCE_GPU_ENABLE_COORDINATION_MODE=true" in found.evidence


def test_value_with_two_dashes_may_be_right_to_somebody_elses_script(host: Host) -> None:
    script = host.folder / "gpus.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert host.examine({PATH: script, ARGS: "--filter=/a--b"}).findings == []


@pytest.mark.parametrize(
    "line",
    [
        f"{ARGS}: --wait 3 --timeout 5",
        f"{ARGS}:--wait 3",
        f"{ARGS}: --coordination-file=/x--enable-coordination-mode",
        "external-resource.gpu.param.name: NVIDIA A100",
    ],
)
def test_blanks_that_flinks_image_is_going_to_remove(host: Host, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setenv("FLINK_PROPERTIES", f"taskmanager.numberOfTaskSlots: 1\nexternal-resources: gpu\n{line}\n")
    found = the(host.examine(), "lost-blanks")
    assert found.evidence == f"FLINK_PROPERTIES in the environment: {line.replace(':-', ': -')}"


@pytest.mark.parametrize(
    ("amount", "evidence"),
    [(None, f"external-resources: gpu, and {AMOUNT} is not set"), (0, f"{AMOUNT}: 0"), ("two", f"{AMOUNT}: two")],
)
def test_missing_or_wrong_amount(host: Host, amount: object, evidence: str) -> None:
    found = the(host.examine({AMOUNT: amount}), "amount")
    place = host.line("external-resources" if amount is None else AMOUNT)
    assert (found.severity, found.evidence, found.remedy) == (ERROR, place + evidence, f"{AMOUNT}: 1")


def test_missing_factory(host: Host) -> None:
    found = the(host.examine({CLASS: None}), "factory")
    assert found.severity == ERROR
    assert found.evidence == f"{host.line('external-resources')}external-resources: gpu, and {CLASS} is not set"
    assert found.remedy.startswith(f"{CLASS}: the class of its driver ({FACTORY}")
    forwarded = {"external-resource.gpu.kubernetes.config-key": "nvidia.com/gpu"}
    assert the(host.examine(forwarded), "factory").severity == WARNING


def test_factory_that_no_jar_has(host: Host) -> None:
    found = the(host.examine({CLASS: "com.example.GPUs"}), "factory")
    assert found.evidence.startswith(f"{host.line(CLASS)}{CLASS}: com.example.GPUs; ")
    assert found.evidence.endswith(f"have {FACTORY}")
    assert found.remedy == f"{CLASS}: {FACTORY}"


def test_resource_that_is_not_listed(host: Host) -> None:
    found = the(host.examine({"external-resources": None}), "not-listed")
    assert found.evidence.startswith(f"{host.line(AMOUNT)}{AMOUNT}: 1; {host.config}: external-resources is not set")
    assert found.remedy == "external-resources: gpu"


@pytest.mark.parametrize("none", ["none", "", "[]"])
def test_nothing_is_asked_for(host: Host, none: str) -> None:
    host.settings = {"external-resources": none, "rest.port": host.closed_port}
    assert the(host.examine(), "not-listed").remedy == "external-resources: gpu"


def test_what_a_strict_reading_refuses_is_told_and_the_rest_goes_on(host: Host) -> None:
    wrong = {"external-resource.gpu.amout": 2, AMOUNT: "two", "external-resources.gpu.amount": 1}
    report = host.examine(wrong)
    listed = "external-resources"
    assert [finding.check for finding in report.findings] == ["amount", "configuration", "configuration"]
    assert [finding.evidence for finding in report.findings[1:]] == [
        f"{host.line('external-resource.gpu.amout')}external-resource.gpu.amout: unknown key, did you mean 'amount'?",
        f"{host.line(f'{listed}.gpu.amount')}{listed}.gpu.amount: unknown key, did you mean 'external-resources'?",
    ]
    assert "devices of 'gpu'" in report.looked


def test_errors_stand_before_warnings_and_nothing_is_told_twice(host: Host) -> None:
    host.ledger.write_text(f"0 {dead_pid()}\n")
    both = {key.replace(".gpu.", ".big."): value for key, value in host.settings.items() if ".gpu." in key}
    report = host.examine({**both, "external-resources": "gpu;big", "execution.target": "yarn-session", AMOUNT: 3})
    assert [finding.check for finding in report.findings] == ["devices", "stale-claims"]
    unread = {"external-resource.gpu.param.wait": 1}
    assert [finding.severity for finding in host.examine(unread).findings] == [ERROR, WARNING, WARNING]


def test_option_that_flinks_driver_does_not_read(host: Host) -> None:
    option = "external-resource.gpu.param.enable-coordination-mode"
    found = the(host.examine({option: "true", ARGS: None}), "unread-option")
    assert (found.severity, found.evidence) == (WARNING, f"{host.line(option)}{option}: true")
    assert found.remedy == f"{ARGS}: --enable-coordination-mode"


def test_configuration_of_task_managers_in_python_is_as_good(host: Host) -> None:
    (host.folder / "lib").rmdir()
    option = "external-resource.gpu.param.min-memory"
    settings = {CLASS: "gpu", PATH: None, ARGS: "--enable-coordination-mode --name 'A100'", option: 1}
    both = {key.replace(".gpu.", ".big."): value for key, value in settings.items()}
    more = {"external-resources": "gpu;big", "external-resource.big.amount": 1}
    assert host.examine({**settings, **both, **more}).findings == []
    assert host.examine({option: 10**6}).findings[0].check == "devices"


def test_script_of_a_task_manager_in_python_is_looked_at_like_flinks(host: Host) -> None:
    script = host.folder / "nvidia-gpu-discovery"
    script.write_text("#!/bin/sh\n")
    (host.folder / "lib").rmdir()
    assert the(host.examine({CLASS: "gpu", PATH: script}), "script").remedy == f"chmod a+x {script}"
    foreign = script.rename(host.folder / "gpus.sh")
    foreign.chmod(0o755)
    report = host.examine({PATH: foreign, ARGS: "--whatever"})
    assert (report.findings, "devices of 'gpu'" in report.looked) == ([], False)


def test_list_that_is_one_name_in_quotes(host: Host) -> None:
    host.config.with_name("flink-conf.yaml").write_text(f'external-resources: "gpu;fpga"\n{AMOUNT}: 1\n')
    report = examination.examine(str(host.config.parent), rest=f"http://localhost:{host.closed_port}")
    assert [finding.check for finding in report.findings] == ["not-listed", "configuration", "configuration"]
    assert "'gpu;fpga', one name with ';' in it: join names by ';', unquoted" in report.findings[1].evidence


def test_quotes_that_no_shell_removes(host: Host) -> None:
    found = the(host.examine({ARGS: "--name 'A100'"}), "quotes")
    assert found.evidence == f"{host.line(ARGS)}{ARGS}: --name 'A100'"


def test_lost_blanks_of_one_resource_hide_nothing_of_another(host: Host) -> None:
    other = {key.replace(".gpu.", ".big."): value for key, value in host.settings.items() if ".gpu." in key}
    wrong = {ARGS.replace(".gpu.", ".big."): "--nope", "external-resources": "gpu;big"}
    lost = {ARGS: "--enable-coordination-mode--coordination-file/x", "execution.target": "yarn-session"}
    report = host.examine({**other, **wrong, **lost})
    assert [finding.check for finding in report.findings] == ["lost-blanks", "options"]
    assert "unknown option" in report.findings[1].evidence
    assert ".big." in report.findings[1].evidence


def test_configuration_that_is_no_yaml(host: Host) -> None:
    host.config.write_text("external-resources: [gpu\n")
    report = examination.examine(str(host.config))
    assert the(report, "configuration").evidence.startswith(f"{host.config}:2: not YAML: ")
    assert "devices of 'gpu'" in report.looked


def test_two_configuration_files_in_one_folder(host: Host) -> None:
    host.write()
    legacy = host.config.with_name("flink-conf.yaml")
    legacy.write_text(host.config.read_text())
    found = the(examination.examine(str(host.config.parent)), "configuration")
    assert (found.severity, found.evidence) == (WARNING, f"{legacy} and {host.config}")
