"""What a sending end tells before its codes, statistics and tables, and how the receiving end reads by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stream_ends import ENTROPY, FLOATS, RATED, WIDTH, ends, features, told

from bitseam.errors import CodecError
from bitseam.quant import LevelProjection, RateFSQ
from bitseam.streams import remember
from bitseam.wire import messages_pb2 as pb

# Statistics


def test_statistics_are_told_once_and_again_to_another_side() -> None:
    sender, receiver = ends(levels=4)
    sender.eval().calibrate(features(20, 4))
    quantized = sender(features())
    news = told(sender.news(quantized))
    assert news.stream == 3
    mean, std = sender.quantizer.statistics()  # type: ignore[misc]
    assert news.mean == mean.numpy().astype("<f4").tobytes()
    assert news.std == std.numpy().astype("<f4").tobytes()
    assert not news.rotation
    assert not news.tables
    assert sender.news(quantized) is None
    receiver.learn(news)
    assert isinstance(receiver.projection, LevelProjection)
    assert torch.equal(receiver.projection.mean, mean)
    assert torch.equal(receiver.projection.std, std)
    sender.forget()
    assert told(sender.news(quantized)) == news
    sender.calibrate(features(20, 4) * 3)
    assert told(sender.news(quantized)).std != news.std


def test_directions_are_told_beside_statistics_and_alone_when_they_alone_change() -> None:
    sender, receiver = ends(**RATED)
    sender.eval().calibrate(features(20, 4))
    quantized = sender(features())
    news = told(sender.news(quantized))
    assert isinstance(sender.quantizer, RateFSQ)
    rotation = sender.quantizer.rotation()
    assert news.rotation == rotation.numpy().tobytes()
    receiver.learn(news)
    assert isinstance(receiver.projection, LevelProjection)
    assert receiver.projection.rotation is not None
    assert torch.equal(receiver.projection.rotation, rotation)
    torch.testing.assert_close(receiver.projection.std, sender.quantizer.statistics()[1])
    turned = rotation.roll(1, 0)
    sender.quantizer.principal.rotation.copy_(turned)
    alone = told(sender.news(quantized))
    assert (alone.stream, alone.mean, alone.std, alone.rotation) == (3, b"", b"", turned.numpy().tobytes())
    std = receiver.projection.std.clone()
    receiver.learn(alone)
    assert torch.equal(receiver.projection.rotation, turned)
    assert torch.equal(receiver.projection.std, std)
    assert sender.news(quantized) is None


@pytest.mark.parametrize("part", ["mean", "rotation"])
def test_statistics_where_there_are_none_are_refused(part: str) -> None:
    _, receiver = ends(**FLOATS)
    with pytest.raises(CodecError, match=r"^image: statistics for a quantizer that has none$"):
        receiver.learn(pb.Statistics(**{part: bytes(24)}))
    receiver.learn(pb.Statistics())  # nothing is new


def test_statistics_of_another_width_are_refused() -> None:
    _, receiver = ends()
    ones = np.ones(WIDTH - 1, "<f4").tobytes()
    with pytest.raises(CodecError, match=r"statistics: mean has shape \(5,\)"):
        receiver.learn(pb.Statistics(mean=ones, std=ones))


# Tables and rates


def test_tables_are_sent_after_a_calibration_and_both_sides_code_by_them() -> None:
    sender, receiver = ends(levels=4, **ENTROPY)
    sender.eval().calibrate(features(50, 4))
    quantized = sender(features(50, 4))
    even = sender.codec(0)
    news = told(sender.news(quantized))
    assert [table.rate for table in news.tables] == [0]
    fitted = sender.entropy_codec(0)
    assert fitted is not None
    assert news.tables[0].frequencies == fitted.table_bytes() != even.table_bytes()  # type: ignore[attr-defined]
    assert sender.tables is not None
    assert sender.tables[0].numpy().tobytes() == fitted.table_bytes()
    receiver.learn(news)
    assert receiver.codec(0) == fitted
    assert torch.equal(receiver.decode(sender.encode(quantized), (50, 4)), quantized.levels)
    assert sender.predicted_bytes(quantized) == fitted.bits(fitted.counts(quantized.levels)) / 8
    assert sender.news(quantized) is None
    copy, _ = ends(levels=4, **ENTROPY)
    copy.load_state_dict(sender.state_dict())
    assert copy.codec(0) == fitted


def test_what_has_no_tables_predicts_nothing_and_takes_none() -> None:
    sender, receiver = ends(levels=4)
    sender.calibrate(features())
    assert sender.predicted_bytes(sender(features())) is None
    assert sender.entropy_codec(0) is None
    assert sender.tables is None
    for end in (sender, receiver):
        with pytest.raises(CodecError, match=r"^image: tables for a codec that has none$"):
            end.keep_tables(b"", 0)
    with pytest.raises(CodecError, match="rate 1 where 1 were agreed"):
        receiver.learn(pb.Statistics(tables=[{"rate": 1}]))


def test_each_rate_has_its_own_tables_and_prices() -> None:
    sender, receiver = ends(**RATED)
    sender.eval().calibrate(features(50, 4))
    assert isinstance(sender.quantizer, RateFSQ)
    assert sender.quantizer.clip == 3.0
    sender.use(1)
    assert sender.rate == 1
    assert sender.quantizer.clip == 6.0
    quantized = sender(features(50, 4))
    news = told(sender.news(quantized))
    assert [table.rate for table in news.tables] == [1]
    receiver.learn(news)
    first, second = sender.entropy_codec(0), sender.entropy_codec(1)
    assert first is not None
    assert second is not None
    assert not first.tables
    assert second.tables
    assert [receiver.codec(0), receiver.codec(1)] == [first, second]
    coded = sender.encode(quantized)
    assert coded.rate == 1
    assert torch.equal(receiver.decode(coded, (50, 4)), quantized.levels)
    assert sender.predicted_bytes(quantized) == second.bits(second.counts(quantized.levels)) / 8
    sender.use(1)
    assert torch.equal(sender.quantizer._prices, second.prices(WIDTH))
    bits = second.bits(second.counts(quantized.levels)) / quantized.levels.numel()
    assert sender(features(50, 4)).distortion.item() == pytest.approx(bits)
    copy, _ = ends(**RATED)
    copy.load_state_dict(sender.state_dict())
    assert [copy.codec(rate).table_bytes() for rate in (0, 1)] == [first.table_bytes(), second.table_bytes()]  # type: ignore[attr-defined]
    with pytest.raises(CodecError, match="rate 2 where 2 were agreed"):
        sender.use(2)


def test_a_run_that_goes_on_renews_its_tables_when_it_would_have() -> None:
    sender, _ = ends(**RATED)
    sender.calibrate(features(50, 4))
    sender.news(sender(features(50, 4)))
    state = sender.state()
    assert state.keys() == {"0.counts", "0.lost", "1.counts", "1.lost"}
    assert (float(state["0.lost"]), float(state["1.lost"])) == (0.0, float("inf"))
    assert state["0.lost"].dtype == torch.float64
    codec = sender.entropy_codec(0)
    assert codec is not None
    other, _ = ends(**RATED)
    other.load_state_dict(sender.state_dict())
    other.restore(state)
    later = features(50, 4, seed=3) * 0.2
    quantized = sender.eval()(later)
    for _ in range(40):
        news, same = sender.news(quantized), other.eval().news(quantized)
        assert (news is None or not news.tables) == (same is None or not same.tables)
    assert other.state().keys() == state.keys()
    assert all(torch.equal(value, other.state()[name]) for name, value in sender.state().items())
    sender.use(1)
    assert told(sender.news(sender(later))).tables  # it was never sent


def test_another_side_is_told_statistics_but_tables_only_once_they_no_longer_fit() -> None:
    sender, _ = ends(levels=4, **ENTROPY)
    sender.eval().calibrate(features(50, 4))
    quantized = sender(features(50, 4))
    sender.news(quantized)
    sender.forget()
    assert float(sender.state()["0.lost"]) == 0.0
    news = told(sender.news(quantized))
    assert news.mean
    assert not news.tables


# What a server has been told, for a client that comes back


def test_what_is_told_later_is_laid_over_what_was_told_before() -> None:
    known = pb.Calibrate()
    remember(known, pb.Calibrate(dictionary=b"d", streams=[{"stream": 1, "mean": b"m", "std": b"s"}]))
    assert known == pb.Calibrate(dictionary=b"d", streams=[{"stream": 1, "mean": b"m", "std": b"s"}])
    remember(known, pb.Calibrate(streams=[{"stream": 1, "tables": [{"rate": 1, "frequencies": b"b"}]}]))
    news = {"stream": 1, "rotation": b"r", "tables": [{"rate": 0, "frequencies": b"a"}]}
    remember(known, pb.Calibrate(streams=[{"stream": 0, "mean": b"n"}, news]))
    remember(known, pb.Calibrate(streams=[{"stream": 1, "std": b"t", "tables": [{"rate": 1, "frequencies": b"c"}]}]))
    tables = [{"rate": 0, "frequencies": b"a"}, {"rate": 1, "frequencies": b"c"}]
    one = {"stream": 1, "mean": b"m", "std": b"t", "rotation": b"r", "tables": tables}
    assert known == pb.Calibrate(dictionary=b"d", streams=[one, {"stream": 0, "mean": b"n"}])
    remember(known, pb.Calibrate(dictionary=b"e"))
    assert known.dictionary == b"e"
    assert len(known.streams) == 2
