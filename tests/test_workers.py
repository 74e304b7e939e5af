from qgraph.workers import Here


def test_here_runs_an_item_when_its_result_is_asked_for():
    ran = []
    results = Here().map(lambda item: ran.append(item) or 2 * item, iter(range(3)), "doubling")
    assert next(results) == 0
    assert ran == [0]
    assert list(results) == [2, 4]
