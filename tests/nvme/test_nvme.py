"""NVMe disks on hosts that are written here, as the kernel would show them: which are handed out, and why not."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from externalresource.drivers.loading import create_driver
from externalresource.errors import ConfigurationError, DiscoveryError, NotEnoughDevicesError
from externalresource_nvme import node
from tests.support.nvme_tree import Tree, device_number, driver, link, listed, plain, reason


class Opening:
    """A disk's file that cannot be opened for some times."""

    def __init__(self, refused: int, number: int = errno.EBUSY) -> None:
        self.refused, self.number = refused, number
        self.tried = self.paused = 0

    def open(self, path: str) -> str:
        self.tried += 1
        if self.tried <= self.refused:
            raise OSError(self.number, os.strerror(self.number), path)
        return "259:1"

    def pause(self, seconds: float) -> None:
        self.paused += 1


def test_disk_is_shown_with_all_that_is_known_of_it(tree: Tree) -> None:
    tree.disk(tree.controller("nvme3", numa_node="1"), "nvme3n1", wwid="eui.36344730525000010025384300000001")
    assert listed(tree) == {
        "nvme3n1": {
            "index": "nvme3n1",
            "uuid": "eui.36344730525000010025384300000001",
            "model": "SAMSUNG MZQL21T9HCJR-00A07",
            "serial": "S64GNE0R3",
            "size": "1920383410176",
            "nsid": "1",
            "numa_node": "1",
            "pci.bus_id": "0000:03:00.0",
            "transport": "pcie",
            "controllers": "nvme3",
            "path": str(tree.dev / "nvme3n1"),
        }
    }


def test_process_is_told_the_paths_of_its_disks(tmp_path: Path) -> None:
    made: Any = create_driver("nvme", plain(tmp_path, 3))
    found = made.retrieve_resource_info(2)
    assert made.environment(found) == {"NVME_DEVICES": f"{tmp_path}/dev/nvme0n1,{tmp_path}/dev/nvme1n1"}


def test_host_without_nvme_has_no_disks(tree: Tree) -> None:
    (tree.sys / "block/sda").mkdir()
    assert listed(tree) == {}


def test_no_sysfs_is_an_error(tree: Tree) -> None:
    with pytest.raises(DiscoveryError) as caught:
        create_driver("nvme", tree.options | {"sysfs": "/no/such/sys"}).retrieve_resource_info(1)
    assert str(caught.value) == "the disks cannot be listed: No such file or directory: /no/such/sys/block"


def test_disks_stand_in_the_order_of_their_numbers(tree: Tree) -> None:
    for name in ("nvme10", "nvme2", "nvme1"):
        controller = tree.controller(name)
        for namespace in (11, 2):
            tree.disk(controller, f"{name}n{namespace}")
    assert list(listed(tree)) == ["nvme1n2", "nvme1n11", "nvme2n2", "nvme2n11", "nvme10n2", "nvme10n11"]


def test_each_namespace_of_a_controller_is_a_disk_of_its_own(tree: Tree) -> None:
    controller = tree.controller("nvme0")
    one, two = (tree.disk(controller, f"nvme0n{nsid}", nsid=str(nsid)) for nsid in (1, 2))
    tree.mount(device_number(one), "/dev/nvme0n1", "/data")
    assert reason(tree) == "in use: nvme0n1 is mounted at /data"
    assert reason(tree, two.name) is None


class TestUsed:
    """Each way in which a disk can be in use, and known to be."""

    def test_mounted_disk_is_never_handed_out(self, tree: Tree, disk: Path) -> None:
        tree.mount(device_number(disk), "/dev/root", "/")
        assert listed(tree)["nvme0n1"]["in_use"] == "nvme0n1 is mounted at /"
        with pytest.raises(NotEnoughDevicesError) as caught:
            driver(tree).retrieve_resource_info(1)
        assert str(caught.value) == ("1 wanted, only 0 of 1 are usable (nvme nvme0n1: in use: nvme0n1 is mounted at /)")

    def test_disk_with_a_mounted_partition_is_in_use(self, tree: Tree, disk: Path) -> None:
        tree.partition(disk, 1)
        tree.mount(device_number(tree.partition(disk, 2)), "/dev/nvme0n1p2", r"/my\040data")
        assert reason(tree) == "in use: nvme0n1p2 is mounted at /my data"

    def test_disk_with_partitions_that_nothing_uses_is_free(self, tree: Tree, disk: Path) -> None:
        tree.partition(disk, 1)
        assert reason(tree) is None

    def test_mount_of_another_number_is_known_by_its_source(self, tree: Tree, disk: Path) -> None:
        tree.partition(disk, 1)
        tree.mount("0:31", "/dev/nvme0n1p1", "/btrfs")
        assert reason(tree) == "in use: nvme0n1p1 is mounted at /btrfs"

    def test_each_source_of_a_mount_counts(self, tree: Tree, disk: Path) -> None:
        tree.mount("0:31", f"/dev/{disk.name}:/dev/sda", "/bcachefs")
        assert reason(tree) == "in use: nvme0n1 is mounted at /bcachefs"

    def test_source_by_another_name_is_followed(self, tree: Tree, disk: Path) -> None:
        link(tree.dev / "disk/by-uuid/1234", tree.dev / disk.name)
        tree.mount("0:31", "/dev/disk/by-uuid/1234", "/data")
        assert reason(tree) == "in use: nvme0n1 is mounted at /data"

    def test_mount_that_only_init_has_counts(self, tree: Tree, disk: Path) -> None:
        tree.mount(device_number(disk), "/dev/nvme0n1", "/host", process="1")
        assert reason(tree) == "in use: nvme0n1 is mounted at /host"

    @pytest.mark.parametrize("kind", ["ext4", "xfs", "f2fs"])
    def test_file_system_of_another_container_counts(self, tree: Tree, disk: Path, kind: str) -> None:
        (tree.sys / "fs" / kind / tree.partition(disk, 1).name).mkdir(parents=True)
        assert reason(tree) == f"in use: nvme0n1p1 is mounted elsewhere ({kind})"

    def test_every_disk_of_a_btrfs_counts(self, tree: Tree, disk: Path) -> None:
        link(tree.sys / "fs/btrfs/0a1b/devices" / disk.name, disk)
        assert reason(tree) == "in use: nvme0n1 is mounted elsewhere (btrfs)"

    def test_every_disk_of_a_bcachefs_counts(self, tree: Tree, disk: Path) -> None:
        link(tree.sys / "fs/bcachefs/0a1b/dev-0/block", disk)
        assert reason(tree) == "in use: nvme0n1 is mounted elsewhere (bcachefs)"

    def test_mount_is_told_once(self, tree: Tree, disk: Path) -> None:
        (tree.sys / "fs/ext4" / disk.name).mkdir(parents=True)
        tree.mount(device_number(disk), "/dev/nvme0n1", "/data")
        tree.mount(device_number(disk), "/dev/nvme0n1", "/bind")
        assert reason(tree) == "in use: nvme0n1 is mounted at /data"

    @pytest.mark.parametrize("gone", ["", r"\040(deleted)"])
    def test_swap_counts(self, tree: Tree, disk: Path, gone: str) -> None:
        name = tree.partition(disk, 3).name
        with (tree.proc / "swaps").open("a") as file:
            file.write(f"/dev/{name}{gone}                          partition\t8388604\t\t0\t\t-2\n")
        assert reason(tree) == "in use: nvme0n1p3 is swap"

    @pytest.mark.parametrize("holder", ["dm-0", "md127", "bcache0"])
    def test_what_stands_upon_a_disk_counts(self, tree: Tree, disk: Path, holder: str) -> None:
        link(tree.partition(disk, 1) / "holders" / holder, tree.sys / "block" / holder)
        link(disk / "holders" / holder, tree.sys / "block" / holder)
        assert reason(tree) == f"in use: nvme0n1 is held by {holder}, nvme0n1p1 is held by {holder}"

    def test_cache_of_a_bcache_counts(self, tree: Tree, disk: Path) -> None:
        (disk / "bcache").mkdir()
        assert reason(tree) == "in use: nvme0n1 belongs to a bcache"

    def test_disk_behind_a_loop_device_counts(self, tree: Tree, disk: Path) -> None:
        (tree.sys / "block/loop0").mkdir()
        tree.write(tree.sys / "block/loop1/loop/backing_file", "/dev/nvme0n1\n")
        assert reason(tree) == "in use: nvme0n1 is behind loop1"

    def test_disk_that_is_exported_counts(self, tree: Tree, disk: Path) -> None:
        path = tree.sys / "kernel/config/nvmet/subsystems/nqn.2026-11.org:x/namespaces/1/device_path"
        tree.write(path, "/dev/nvme0n1\n")
        assert reason(tree) == "in use: nvme0n1 is behind the NVMe target nqn.2026-11.org:x"

    def test_what_others_use_does_not_count(self, tree: Tree, disk: Path) -> None:
        tree.mount("8:1", "/dev/nvme0n11", "/data")
        tree.mount("0:5", "nvme0n1x", "/tmpfs")
        (tree.sys / "fs/ext4/nvme0n11").mkdir(parents=True)
        assert reason(tree) is None

    def test_disk_that_a_process_has_for_itself_is_told(self) -> None:
        opening = Opening(refused=1000)
        assert node.refusal("/dev/nvme0n1", "259:1", opening.open, opening.pause) == (
            "/dev/nvme0n1 is in use: something has it for itself (a file system, ZFS, a RAID, a program)"
        )
        assert opening.tried == opening.paused + 1 == 5

    def test_disk_that_another_looks_at_as_we_do_is_not_in_use(self) -> None:
        opening = Opening(refused=3)
        assert node.refusal("/dev/nvme0n1", "259:1", opening.open, opening.pause) is None
        assert opening.paused == 3

    def test_disk_that_may_not_be_opened_is_asked_for_once(self) -> None:
        opening = Opening(refused=1000, number=errno.EACCES)
        assert node.refusal("/dev/nvme0n1", "259:1", opening.open, opening.pause) == (
            "/dev/nvme0n1 cannot be opened: Permission denied"
        )
        assert opening.tried == 1


class TestNotKnown:
    """What cannot be told keeps a disk back."""

    def test_without_mounts_no_disk_is_handed_out(self, tree: Tree, disk: Path) -> None:
        path = tree.proc / "self/mountinfo"
        path.unlink()
        assert reason(tree, disk.name) == f"what is in use is not known: No such file or directory: {path}"

    @pytest.mark.parametrize("line", ["36 22 259:1 / /x rw", "36 22 x / /x rw - ext4 /dev/sda rw", "garbage - x"])
    def test_mounts_that_cannot_be_read_keep_all_disks_back(self, tree: Tree, disk: Path, line: str) -> None:
        path = tree.write(tree.proc / "self/mountinfo", f"{line}\n")
        assert reason(tree, disk.name) == (f"what is in use is not known: {path} has a line that is no mount: {line!r}")

    @pytest.mark.parametrize("name", ["fs", "kernel/config/nvmet/subsystems"])
    def test_folder_that_cannot_be_read_keeps_all_disks_back(self, tree: Tree, disk: Path, name: str) -> None:
        path = tree.sys / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rmdir()
        path.symlink_to(path)  # root may read all, but nothing reads a loop of links
        said = f"what is in use is not known: Too many levels of symbolic links: {path}"
        assert reason(tree, disk.name) == said

    def test_folder_of_no_disks_need_not_be_readable(self, tree: Tree, disk: Path) -> None:
        for name in ("bpf", "pstore"):  # which are root's alone
            path = tree.sys / "fs" / name
            path.symlink_to(path)
        assert reason(tree, disk.name) is None

    def test_kernel_without_swap_has_none(self, tree: Tree, disk: Path) -> None:
        (tree.proc / "swaps").unlink()
        assert reason(tree, disk.name) is None

    @pytest.mark.parametrize("attribute", ["dev", "size", "holders"])
    def test_disk_that_cannot_be_read_is_kept_back(self, tree: Tree, disk: Path, attribute: str) -> None:
        path = disk / attribute
        path.rmdir() if path.is_dir() else path.unlink()
        said = reason(tree)
        assert said is not None
        assert said.startswith("it cannot be read: No such file or directory: ")
        assert said.endswith(f"/nvme0n1/{attribute}")

    def test_partition_that_cannot_be_read_keeps_its_disk_back(self, tree: Tree, disk: Path) -> None:
        (tree.partition(disk, 1) / "dev").unlink()
        assert "nvme0n1p1/dev" in str(reason(tree))

    @pytest.mark.parametrize("attribute", ["dev", "size"])
    def test_number_that_is_none_keeps_a_disk_back(self, tree: Tree, disk: Path, attribute: str) -> None:
        (disk / attribute).write_text("x\n")
        assert str(reason(tree)).startswith("it cannot be read: ")

    def test_disk_of_nobody_is_kept_back(self, tree: Tree, disk: Path) -> None:
        (disk / "device").unlink()
        assert str(reason(tree)).startswith("it cannot be read: No such file or directory: ")

    def test_one_disk_that_cannot_be_read_keeps_no_other_back(self, tree: Tree, disk: Path) -> None:
        other = tree.disk(tree.controller("nvme1"), "nvme1n1")
        (disk / "size").unlink()
        assert reason(tree, other.name) is None

    def test_disk_without_its_file_is_kept_back(self, tree: Tree, disk: Path) -> None:
        path = tree.dev / disk.name
        path.unlink()
        assert reason(tree) == f"{path} cannot be opened: No such file or directory"

    def test_file_of_another_disk_is_told(self) -> None:
        assert node.refusal("/dev/nvme0n1", "259:1", lambda _: "259:2") == (
            "/dev/nvme0n1 is another device (259:2, not 259:1)"
        )
        assert node.refusal("/dev/nvme0n1", "259:1", lambda _: "259:1") is None

    def test_what_is_no_block_device_has_no_number(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.touch()
        before = len(os.listdir("/proc/self/fd"))
        assert node.open_alone(str(path)) is None
        assert len(os.listdir("/proc/self/fd")) == before

    def test_disk_that_is_used_or_faulty_is_not_even_opened(self, tree: Tree, disk: Path) -> None:
        (tree.dev / disk.name).unlink()
        tree.mount(device_number(disk), "/dev/nvme0n1", "/data")
        assert reason(tree) == "in use: nvme0n1 is mounted at /data"


class TestDisk:
    """What a disk is, whoever uses it."""

    @pytest.mark.parametrize("state", ["new", "resetting", "connecting", "deleting", "deleting (no IO)", "dead"])
    def test_disk_of_a_controller_that_is_not_live_is_kept_back(self, tree: Tree, state: str) -> None:
        tree.disk(tree.controller("nvme0", state=state), "nvme0n1")
        assert reason(tree) == f"no controller of it is live (nvme0 is {state})"

    def test_disk_of_a_controller_in_no_known_state_is_kept_back(self, tree: Tree) -> None:
        controller = tree.controller("nvme0")
        tree.disk(controller, "nvme0n1")
        (controller / "state").unlink()
        assert reason(tree) == "no controller of it is live (nvme0 is in no known state)"

    def test_disk_without_size_is_kept_back(self, tree: Tree, disk: Path) -> None:
        (disk / "size").write_text("0\n")
        assert reason(tree, disk.name) == "it has no size"

    @pytest.mark.parametrize("transport", ["tcp", "rdma", "fc", "loop"])
    def test_disk_over_a_network_is_kept_back_unless_it_is_wanted(self, tree: Tree, transport: str) -> None:
        tree.disk(tree.controller("nvme0", transport=transport), "nvme0n1")
        assert reason(tree) == f"it is reached by {transport}: other hosts may use it; see the option fabrics"
        assert reason(tree, fabrics="true") is None

    def test_disk_by_an_unknown_transport_is_kept_back(self, tree: Tree) -> None:
        controller = tree.controller("nvme0")
        tree.disk(controller, "nvme0n1")
        (controller / "transport").unlink()
        assert "an unknown transport" in str(reason(tree))

    def test_read_only_disk_is_told_so(self, tree: Tree) -> None:
        tree.disk(tree.controller("nvme0"), "nvme0n1", ro="1")
        assert listed(tree)["nvme0n1"]["read_only"] == "true"

    def test_node_that_is_none_is_left_out(self, tree: Tree) -> None:
        tree.disk(tree.controller("nvme0", numa_node="-1"), "nvme0n1")
        assert "numa_node" not in listed(tree)["nvme0n1"]

    def test_all_faults_are_told(self, tree: Tree, disk: Path) -> None:
        (disk / "size").write_text("0\n")
        tree.mount(device_number(disk), "/dev/nvme0n1", "/data")
        assert reason(tree) == "it has no size; in use: nvme0n1 is mounted at /data"


def test_controller_is_found_by_its_link_and_not_by_its_name(tree: Tree) -> None:
    tree.controller("nvme0", state="dead")
    tree.disk(tree.controller("nvme1", numa_node="7"), "nvme0n1")
    assert listed(tree)["nvme0n1"]["numa_node"] == "7"
    assert reason(tree) is None


def test_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean 'sysfs'\?$"):
        create_driver("nvme", {"sysf": "/sys"})
