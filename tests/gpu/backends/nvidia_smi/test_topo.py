import pytest

from externalresource_gpu.backends.nvidia_smi import topo


def matrix(*rows: str) -> str:
    return "\n".join("\t".join(row.split("|")) for row in rows) + "\n"


def test_matrix_of_gpus_alone() -> None:
    assert topo.parse(
        matrix(
            "|\x1b[4mGPU0|GPU1|GPU2|CPU Affinity|NUMA Affinity|GPU NUMA ID\x1b[0m",
            "GPU0| X |NV12|SYS|0-13,28-41|0||N/A",
            "GPU1|NV12| X |PXB|0-13,28-41|0||N/A",
            "GPU2|SYS|PXB| X |14-27|1||N/A",
            "",
            "Legend:",
            "",
            "  X    = Self",
        )
    ) == {(0, 1): "NV12", (0, 2): "SYS", (1, 2): "PXB"}


def test_network_adapters_are_left_out_wherever_they_stand() -> None:
    assert topo.parse(
        matrix(
            "|GPU0|mlx5_0|GPU1|NIC0|CPU Affinity",
            "GPU0| X |PIX|NODE|SYS|0-23",
            "mlx5_0|PIX| X |PHB|SYS|",
            "GPU1|NODE|PHB| X |SYS|0-23",
            "NIC0|SYS|SYS|SYS| X |",
            "",
            "NIC Legend:",
            "",
            "  NIC0: mlx5_0",
        )
    ) == {(0, 1): "NODE"}


def test_indices_keep_their_gaps() -> None:
    assert topo.parse(matrix("|GPU0|GPU2|GPU11", "GPU0| X |PIX|PHB", "GPU2|PIX| X |PHB", "GPU11|PHB|PHB| X ")) == {
        (0, 2): "PIX",
        (0, 11): "PHB",
        (2, 11): "PHB",
    }


@pytest.mark.parametrize("link", ["NV1", "NV18", "PIX", "PXB", "PHB", "NODE", "SYS"])
def test_link_is_kept_as_it_is_called(link: str) -> None:
    assert topo.parse(matrix("|GPU0|GPU1", f"GPU0| X |{link}", f"GPU1|{link}| X ")) == {(0, 1): link}


def test_link_between_sockets_of_old_drivers_is_todays() -> None:
    assert topo.parse(matrix("|GPU0|GPU1", "GPU0| X |SOC", "GPU1|SOC| X ")) == {(0, 1): "SYS"}


@pytest.mark.parametrize("cell", ["", "N/A", "ERR!", "[Unknown Error]", " X ", "NV", "0-23"])
def test_cell_that_is_no_link_is_unknown(cell: str) -> None:
    assert topo.parse(matrix("|GPU0|GPU1|GPU2", f"GPU0| X |{cell}|PIX")) == {(0, 2): "PIX"}


def test_link_that_one_side_does_not_tell_is_known_from_the_other() -> None:
    assert topo.parse(matrix("|GPU0|GPU1", "GPU0| X |", "GPU1|PIX| X ")) == {(0, 1): "PIX"}


def test_underlined_column_is_known_from_the_other_side_too() -> None:
    assert topo.parse(matrix("|\x1b[4mGPU0|GPU1\x1b[0m", "GPU1|PIX| X ")) == {(0, 1): "PIX"}
    assert topo.parse(matrix("|\x1b[4mGPU0|GPU1\x1b[0m", "GPU0| X |PIX")) == {(0, 1): "PIX"}


def test_gpu_has_no_link_to_itself() -> None:
    assert topo.parse(matrix("|GPU0|GPU1", "GPU0|PIX|NV4")) == {(0, 1): "NV4"}


def test_row_that_is_cut_off_tells_what_it_has() -> None:
    assert topo.parse(matrix("|GPU0|GPU1|GPU2", "GPU0| X |PIX")) == {(0, 1): "PIX"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "ERROR: Option topo is not recognized. Please run 'nvidia-smi -h'.\n",
        "GPU0\t X \tNV12\n",
        "Failed to initialize NVML: Unknown Error",
    ],
)
def test_text_without_a_matrix_has_no_links(text: str) -> None:
    assert topo.parse(text) == {}
