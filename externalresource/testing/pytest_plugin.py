"""A fixture for tests that use a GPU: each pytest-xdist worker gets one of its own.

Every pytest on this host imports this module at its start, so it costs nothing until the fixture is used.
"""

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from externalresource.drivers import ExternalResourceInfo


@pytest.fixture(scope="session")
def worker_gpu() -> "Iterator[ExternalResourceInfo]":
    """Return the GPU that only this pytest-xdist worker has (without xdist: this pytest), and restrict CUDA to it.

    It is claimed when the first test asks for it, and free again when the worker ends. Options are environment
    variables: EXTERNALRESOURCE_GPU_WAIT=600 to queue for it, EXTERNALRESOURCE_GPU_SIMULATE=2 for a host without GPUs.
    """
    from externalresource.context import claim
    from externalresource.errors import ExternalResourceError

    refused = ""
    try:
        context = claim("gpu")
        variables = context.environment()
    except ExternalResourceError as error:
        refused = str(error)
    if refused:  # said outside of the handler, as pytest would show both errors there
        pytest.fail(f"no GPU for this worker: {refused}", pytrace=False)
    with context, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        [info] = context.get_external_resource_infos("gpu")
        yield info
