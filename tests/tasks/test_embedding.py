"""Embeddings: which outputs are some, how alike two models' are, and verification against a second implementation."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import CASES
from networks import Net

from qgraph.errors import DataError
from qgraph.formats.mxnet import load
from qgraph.ir.graph import Graph, Port
from qgraph.options import JudgeOptions
from qgraph.passes.canonicalize import Canonicalize
from qgraph.tasks import embedding, verification
from qgraph.tasks.base import Head, Tally
from qgraph.tasks.embedding import Embedding
from qgraph.tasks.registry import Assigned, assign, heads_of


def judged(g: Graph, *shape: int, like: tuple[int, ...] = (4, 3, 12, 12)) -> Assigned:
    """The task of the only output."""
    Canonicalize().run(g)
    heads = heads_of(["out"], [np.zeros(shape, np.float32)], shape[0], g, {"data": np.zeros(like, np.float32)})
    (found,) = assign(heads)
    return found


def task(size: int = 8, images: int = 4) -> Embedding:
    return Embedding([Head("out", (images, size), images)])


def ids(count: int) -> list[str]:
    return [f"faces[{number}]" for number in range(count)]


def faces(rng: np.random.Generator, images: int, people: int, size: int = 8, noise: float = 0.7,
          ) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, people, images)
    vectors = rng.normal(size=(people, size))[labels] + rng.normal(size=(images, size)) * noise
    return (vectors * rng.uniform(0.5, 3, (images, 1))).astype(np.float32), labels


def split(rng: np.random.Generator, count: int) -> list[slice]:
    """Parts of images, in any order."""
    cuts = [0, *sorted(set(rng.integers(1, count, 5).tolist())), count]
    parts = [slice(a, b) for a, b in zip(cuts, cuts[1:])]
    return [parts[number] for number in rng.permutation(len(parts))]


def added(tallies: list[Tally]) -> Tally:
    total = tallies[0]
    for tally in tallies[1:]:
        total = total + tally
    return total


# ------------------------------------------------------------------------------------------------- which outputs


@pytest.mark.cases("cifar_resnet20_v1")
def test_a_classifier_cut_at_its_pooling() -> None:
    folder = CASES / "cifar_resnet20_v1"
    g = load(folder / "cifar_resnet20_v1-symbol.json", folder / "cifar_resnet20_v1-0000.params")
    assert judged(g.copy(), 4, 10).task.name == "classification"
    pooling = [node for node in g.toposort() if node.op == "Pooling"][-1]
    for head, shape in ((pooling, (4, 64, 1, 1)), (g.add("Flatten", [pooling]), (4, 64))):
        g.heads = [Port(head)]
        found = judged(g.copy(), *shape)
        assert (found.task.name, found.sure) == ("embedding", 0.75), head.op


@pytest.mark.cases("squeezenet1.1")
def test_a_classifier_that_ends_with_a_pooling() -> None:
    folder = next((CASES / "squeezenet1.1").glob("*-symbol.json"))
    assert judged(load(folder), 4, 1000).task.name == "classification"


def insightface(n: Net) -> Graph:
    """As fc1 of LResNet-E: BatchNorm, Dropout, FullyConnected, BatchNorm."""
    x = n.op("Flatten", n.conv(n.x, 4))
    return n.done(batch_norm(n, n.dense(x, 4 * 144, 16), "fc1"))


def mobilefacenet(n: Net) -> Graph:
    x = n.conv(n.conv(n.x, 4, act=""), 16, act="")
    return n.done(n.op("Flatten", batch_norm(n, x, "last")))


def normalized(n: Net) -> Graph:
    return n.done(n.op("L2Normalization", n.head(n.conv(n.x, 4), 16), mode="instance"))


def plain(n: Net) -> Graph:
    return n.done(n.head(n.conv(n.x, 4), 16))


def softmax(n: Net) -> Graph:
    return n.done(n.op("softmax", n.head(n.conv(n.x, 4), 16)))


def softmax_of_normed(n: Net) -> Graph:
    return n.done(n.op("SoftmaxOutput", batch_norm(n, n.head(n.conv(n.x, 4), 16), "bn"), n.g.add("null", name="label")))


def activated(n: Net) -> Graph:
    return n.done(n.op("Activation", n.head(n.conv(n.x, 4), 16), act_type="sigmoid"))


def batch_norm(n: Net, x, name: str):
    size = n.channels[x]
    return n.op("BatchNorm", x, *(n.param(f"{name}_{part}", size)
                                  for part in ("gamma", "beta", "moving_mean", "moving_var")))


@pytest.mark.parametrize("net, want", [
    (insightface, "embedding"), (mobilefacenet, "embedding"), (normalized, "embedding"), (plain, "classification"),
    (softmax, "classification"), (softmax_of_normed, "classification"), (activated, "classification")])
def test_which_networks(net, want: str) -> None:
    assert judged(net(Net(1)), 4, 16).task.name == want


def test_which_shapes() -> None:
    behind = ("L2Normalization", "FullyConnected")
    for shape, images, count in (((4, 16), 4, 1), ((4, 16, 1, 1), 4, 1), ((4, 16, 2, 2), 4, 0), ((8, 16), 4, 0),
                                 ((4, 1), 4, 0), ((4,), 4, 0), ((), 0, 0)):
        assert len(Embedding.claims([Head("out", shape, images, behind)])) == count, shape
    assert Embedding.claims([Head("out", (4, 16), 4)]) == []  # nothing is known of it
    assert Embedding.claims([Head("out", (4, 16), 4, ("Flatten", "softmax", "Pooling"))]) == []


# ------------------------------------------------------------------------------------------------- without labels


def likeness(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """A plain second implementation, image by image."""
    def cosine(u: np.ndarray, v: np.ndarray) -> float:
        u, v = u.astype(np.float64), v.astype(np.float64)
        return float(u @ v / np.sqrt((u @ u) * (v @ v)))

    cosines = [cosine(u, v) for u, v in zip(a, b)]

    def nearest(vectors: np.ndarray, i: int) -> int:
        return max((j for j in range(len(vectors)) if j != i), key=lambda j: cosine(vectors[i], vectors[j]))

    same = [nearest(a, i) == nearest(b, i) for i in range(len(a))]
    return {"cosine_mean": float(np.mean(cosines)), "cosine_least": min(cosines), "neighbours": 100 * np.mean(same)}


def test_agreement_is_that_of_a_second_implementation() -> None:
    rng = np.random.default_rng(5)
    a, _ = faces(rng, 60, 12)
    b = (a + rng.normal(size=a.shape) * 0.5).astype(np.float32)
    found = task().agreement([a], [b], 0).result()
    want = likeness(a, b)
    assert found == pytest.approx(want, abs=1e-9) and 30 < want["neighbours"] < 90
    assert task().agreement([a.reshape(60, 8, 1, 1)], [b.reshape(60, 8, 1, 1)], 0).result() == found
    assert task().agreement([a], [3 * a], 0).result() == pytest.approx(
        {"cosine_mean": 1.0, "cosine_least": 1.0, "neighbours": 100.0})


def test_any_split_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    a, labels = faces(rng, 90, 12)
    b = (a + rng.normal(size=a.shape) * 0.3).astype(np.float32)
    a[60:], b[70:] = a[:30], b[50:70]  # images that are alike
    pairs = verification.pairs_of(labels, "faces")
    whole = (task().agreement([a], [b], 0), task().score([a], labels, ids(90), 0),
             task().verify([a], pairs, ids(90), 0))
    monkeypatch.setattr(embedding, "_BLOCK", 7 * 90)
    blocks = task().agreement([a], [b], 0).result()
    assert blocks["neighbours"] == whole[0].result()["neighbours"]
    monkeypatch.undo()
    for _ in range(4):
        parts = split(rng, 90)
        tallies = (
            added([task().agreement([a[part]], [b[part]], part.start) for part in parts]),
            added([task().score([a[part]], labels[part], ids(90)[part], part.start) for part in parts]),
            added([task().verify([a[part]], pairs, ids(90)[part], part.start) for part in parts]))
        assert [tally.result() for tally in tallies] == [tally.result() for tally in whole]


def test_ties_and_vectors_without_a_direction() -> None:
    a = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    assert task(2).agreement([a], [a], 0).result()["neighbours"] == 100
    constant = task(2).agreement([a], [np.ones_like(a)], 0).result()
    assert constant["neighbours"] == 100  # 1, 0, 0, 0 in both: the lowest number of those that are alike
    turned = a[[3, 1, 2, 0]]  # now 3 is like 1 and 2
    assert task(2).agreement([a], [turned], 0).result()["neighbours"] == 25
    broken = np.array([[0, 0], [np.nan, 1], [np.inf, 0], [0, 1]], np.float32)
    assert task(2).agreement([a], [broken], 0).result() == pytest.approx(
        {"cosine_mean": 0.25, "cosine_least": 0.0, "neighbours": 100.0})
    assert task(2).agreement([broken], [broken], 0).result()["cosine_mean"] == 1
    assert task(2).agreement([a[:1]], [a[:1]], 0).result()["neighbours"] is None
    opposite = task(2).agreement([a], [-a], 0).result()
    assert opposite["cosine_mean"] == -1 and task(2).standing(opposite["cosine_mean"]) < 0


def test_many_images_take_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_BLOCK", 1 << 16)
    monkeypatch.setattr(embedding, "MOST_ASKED", 500)
    rng = np.random.default_rng(7)
    a, _ = faces(rng, 4000, 300)
    tally = task().agreement([a], [(a + rng.normal(size=a.shape) * 0.2).astype(np.float32)], 0)
    tracemalloc.start()
    share = tally.result()["neighbours"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 10 < share < 100 and (share * 5).is_integer() and peak < 4000 * 4000


# ------------------------------------------------------------------------------------------------- with labels


def plain_accuracy(vectors: np.ndarray, pairs: np.ndarray) -> float:
    """As InsightFace's verification.py has it, threshold by threshold."""
    pytest.importorskip("sklearn")
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import normalize

    scaled = normalize(vectors.astype(np.float64))
    apart = np.square(scaled[pairs[:, 0]] - scaled[pairs[:, 1]]).sum(1)
    same, thresholds, folds = pairs[:, 2] == 1, np.arange(0, 4, 0.01), []
    for train, test in KFold(n_splits=10, shuffle=False).split(np.arange(len(pairs))):
        right = [np.mean((apart[train] < threshold) == same[train]) for threshold in thresholds]
        folds.append(np.mean((apart[test] < thresholds[int(np.argmax(right))]) == same[test]))
    return 100 * float(np.mean(folds))


def plain_tar(vectors: np.ndarray, pairs: np.ndarray, far: float) -> float:
    pytest.importorskip("sklearn")
    from sklearn.metrics import roc_curve

    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1)
    fpr, tpr, _ = roc_curve(pairs[:, 2], cosines, drop_intermediate=False)
    return 100 * float(tpr[fpr <= far].max())


@pytest.mark.parametrize("images, people, noise, far", [
    (100, 20, 0.5, 1e-3), (120, 7, 0.7, 1e-3), (20, 5, 0.5, 1e-2), (60, 59, 0.2, 1e-3), (150, 2, 1.0, 1e-3)])
def test_verification_is_that_of_a_second_implementation(images: int, people: int, noise: float, far: float) -> None:
    vectors, labels = faces(np.random.default_rng(images), images, people, noise=noise)
    found = task().score([vectors], labels, ids(images), 0).result()
    pairs = np.array([(i, j, labels[i] == labels[j]) for i in range(images) for j in range(i + 1, images)], np.int64)
    np.testing.assert_array_equal(verification.pairs_of(labels, ""), pairs)
    assert found["tar_at_far"] == pytest.approx(plain_tar(vectors, pairs, far), abs=1e-6)
    chosen = pairs[verification.balanced(pairs)]
    assert len({tuple(row) for row in chosen.tolist()}) == len(chosen) and (chosen[:, 2] == 1).mean() == 0.5
    assert len(chosen) == 2 * min((pairs[:, 2] == 1).sum(), (pairs[:, 2] == 0).sum())
    assert {tuple(row) for row in chosen.tolist()} <= {tuple(row) for row in pairs.tolist()}
    if len(chosen) >= 10:
        assert found["accuracy"] == pytest.approx(plain_accuracy(vectors, chosen), abs=1e-6)


def test_given_pairs() -> None:
    rng = np.random.default_rng(8)
    vectors, labels = faces(rng, 200, 20)
    pairs = verification.pairs_of(labels, "")
    pairs = pairs[rng.permutation(len(pairs))[:3501]]
    for given in (pairs, pairs[np.argsort(pairs[:, 2], kind="stable")], pairs[:, [1, 0, 2]]):
        found = task().verify([vectors], given, ids(200), 0).result()
        assert found == pytest.approx({"accuracy": plain_accuracy(vectors, given),
                                       "tar_at_far": plain_tar(vectors, given, 1e-3)}, abs=1e-6)
    with pytest.raises(DataError, match=r"pair 2 is of the images 5 and 200, but 200 images .* \(faces\[0\] to face"):
        task().verify([vectors], np.array([[0, 1, 1], [1, 2, 0], [5, 200, 1]]), ids(200), 0).result()


def test_distances_that_are_alike() -> None:
    vectors = np.repeat(np.eye(8, dtype=np.float32), 40, axis=0)  # 0 or 2, nothing between
    labels = np.repeat(np.arange(8), 40)
    assert task().score([vectors], labels, ids(320), 0).result() == {"accuracy": 100.0, "tar_at_far": 100.0}
    mixed = np.tile(np.arange(8), 40)  # vectors say nothing of these
    found = task().score([vectors], mixed, ids(320), 0).result()
    assert found["tar_at_far"] == plain_tar(vectors, verification.pairs_of(mixed, ""), 1e-3) == 0
    assert 40 < found["accuracy"] < 60


def test_distances_at_a_threshold() -> None:
    """Only what is below it is the same."""
    rng = np.random.default_rng(11)
    apart, same = verification.THRESHOLDS[rng.integers(1, 12, 300)], rng.random(300) < 0.5
    apart[same] = np.minimum(apart[same], verification.THRESHOLDS[6]) - 0.004
    apart[~same] = np.maximum(apart[~same], verification.THRESHOLDS[6])
    folds = np.array_split(np.arange(300), 10)
    right = [[((apart[fold] < at) == same[fold]).mean() for at in verification.THRESHOLDS] for fold in folds]
    best = [int(np.argmax(np.round(np.sum(right[:k] + right[k + 1:], axis=0), 9))) for k in range(10)]
    want = np.mean([right[k][best[k]] for k in range(10)])
    assert float(verification.accuracy(apart, same)) == pytest.approx(want) and want == 1


def test_few_pairs() -> None:
    vectors, _ = faces(np.random.default_rng(9), 4, 2)
    found = task().verify([vectors], np.array([[0, 1, 1]]), ids(4), 0).result()
    assert found == {"accuracy": None, "tar_at_far": None}
    found = task().verify([vectors], np.array([[0, 1, 1], [2, 3, 0], [0, 3, 0]]), ids(4), 0).result()
    assert found["accuracy"] is not None and found["tar_at_far"] is None
    same = np.array([(i, j, 0) for i in range(4) for j in range(i)] * 200)
    assert task().verify([vectors], same, ids(4), 0).result()["tar_at_far"] is None


@pytest.mark.parametrize("counts", [[2] * 240, [120, 100, 80, 1, 1], [300, 1], [1] * 280 + [2]])
def test_pairs_of_many_images(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "MOST_PAIRS", 1 << 14)
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(len(counts)) * 7 - 3, counts))
    pairs = verification.pairs_of(labels, "")
    np.testing.assert_array_equal(pairs, verification.pairs_of(labels, ""))
    assert len(np.unique(pairs[:, :2], axis=0)) == len(pairs) <= verification.MOST_PAIRS
    assert (pairs[:, 0] < pairs[:, 1]).all() and pairs.min() >= 0 and pairs[:, 1].max() < len(labels)
    np.testing.assert_array_equal(pairs[:, 2] == 1, labels[pairs[:, 0]] == labels[pairs[:, 1]])
    genuine = sum(count * (count - 1) // 2 for count in counts)
    kept, half = int(pairs[:, 2].sum()), verification.MOST_PAIRS // 2
    assert kept == genuine if genuine <= half else half // 3 < kept <= half
    if genuine > half:  # each pair as likely as another
        share = {number: count * (count - 1) / 2 / genuine for number, count in enumerate(counts)}
        drawn = np.bincount((labels[pairs[pairs[:, 2] == 1][:, 0]] + 3) // 7, minlength=len(counts)) / kept
        assert max(abs(drawn[number] - want) for number, want in share.items()) < 0.12


def test_pairs_of_a_bin() -> None:
    rng = np.random.default_rng(10)
    vectors, _ = faces(rng, 400, 300)
    same = rng.integers(0, 2, 200)
    vectors[1::2] = np.where(same[:, None], vectors[0::2] + rng.normal(size=(200, 8)) * 0.3, vectors[1::2])
    labels = np.repeat(np.stack([np.arange(200), same], 1), 2, axis=0).astype(np.float32)
    given = np.stack([np.arange(0, 400, 2), np.arange(1, 400, 2), same], 1)
    want = task().verify([vectors], given, ids(400), 0).result()
    assert task().score([vectors], labels, ids(400), 0).result() == want and want["accuracy"] > 80
    parts = [slice(0, 7), slice(7, 300), slice(300, 400)]
    assert added([task().score([vectors[p]], labels[p], ids(400)[p], p.start) for p in parts]).result() == want
    some = task().score([vectors[1:-1]], labels[1:-1], ids(400)[1:-1], 0).result()  # two images without the other one
    assert some == task().verify([vectors], given[1:-1], ids(400), 0).result()


@pytest.mark.parametrize("labels, message", [
    ([0, 1, 2, 3], r"^a to d: each of the 4 images has an identity of its own, want two images of some"),
    ([5, 5, 5, 5], r"^a to d: all 4 images have the identity 5, want two identities or more"),
    ([0.5, 1, 2, 2], r"^a: its label is not an identity, want a whole number per image"),
    ([0, 1, np.nan, 2], r"^c: its label is not an identity"),
    ([0, 1, 1e300, 2], r"^c: its label is not an identity"),
    ([[0, 1, 2]] * 4, r"^a: its label is not an identity"),
    ([[0, 1], [0, 1], [1, 2], [1, 2]], r"^c: found the label \[1, 2\], want the number of a pair and 0 or 1"),
    ([[0, 1], [0, 0], [1, 1], [1, 1]], r"^a to d: the two images of the pair 0 are labelled 0 and 1"),
    ([[0, 1], [0, 1], [0, 1], [1, 1]], r"^a to d: three images or more are of the pair 0, want two"),
    ([[0, 1], [1, 1], [2, 1], [3, 1]], r"^a to d: no pair has both of its images"),
])
def test_wrong_labels(labels: list, message: str) -> None:
    vectors, _ = faces(np.random.default_rng(9), 4, 2)
    with pytest.raises(DataError, match=message) as raised:
        task().score([vectors], np.array(labels), list("abcd"), 0).result()
    assert "\n" not in str(raised.value)


def test_rows_that_are_not_images() -> None:
    with pytest.raises(DataError, match="a: the output out has 8 rows for 4 images"):
        task().score([np.ones((8, 3), np.float32)], np.arange(4), list("abcd"), 0)


def test_a_bin_of_images_through_the_judge(tmp_path: Path) -> None:
    """`open_data` of a .bin gives the labels that `score` reads."""
    import io
    import pickle

    from PIL import Image

    from qgraph.commands.judge import Judge
    from qgraph.data.open import open_data

    rng, images, same = np.random.default_rng(2), [], []
    for pair in range(24):
        first = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        second = first if pair % 2 else rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        for pixels in (first, second):
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            images.append(out.getvalue())
        same.append(bool(pair % 2))
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, same), 2))
    judge = Judge(["out"], options=JudgeOptions(task=("embedding",)))
    for batch in open_data(tmp_path / "lfw.bin", batch_size=5):
        vectors = batch.feeds["data"].reshape(len(batch), -1) - 127
        judge.add(batch, [vectors], [vectors])
    assert judge.scores() == {"accuracy": 100.0, "tar_at_far": None}
    assert judge.agreement()["tasks"][0]["metrics"]["cosine_mean"] == 1.0
