import pytest


@pytest.fixture(autouse=True)
def figures(request):
    """Blank, but in the test of each script that looks at them: the one marked ``draws``."""
    if request.node.get_closest_marker("draws") is None:
        request.getfixturevalue("blank_figures")
