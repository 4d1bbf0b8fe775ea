import gzip
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import ImageError
from medseg.io.byte_stream import ByteStream

MEMBERS = st.lists(st.binary(max_size=3000), min_size=1, max_size=5)


def whole(path, **options):
    with ByteStream(path, **options) as stream:
        return stream.take(1 << 30)


@settings(max_examples=60)
@given(MEMBERS, st.integers(0, 200))
def test_gzip_members_read_as_gzip_reads_them(tmp_path_factory, members, padding):
    path = tmp_path_factory.getbasetemp() / "members.gz"
    path.write_bytes(b"".join(gzip.compress(member) for member in members) + bytes(padding))
    assert whole(path) == b"".join(members) == gzip.decompress(path.read_bytes())


@settings(max_examples=60)
@given(st.binary(min_size=2, max_size=3000), st.integers(0, 100), st.integers(0, 4000), st.integers(1, 4000))
@pytest.mark.parametrize("packing", ["none", "gzip", "zlib"])
def test_skip_and_fill_see_the_bytes_that_are_there(tmp_path_factory, packing, data, start, skipped, wanted):
    path = tmp_path_factory.getbasetemp() / f"{packing}.bin"
    packed = {"none": data, "gzip": gzip.compress(data), "zlib": zlib.compress(data)}[packing]
    path.write_bytes(b"x" * start + packed)
    with ByteStream(path, start=start, packing=packing) as stream:
        assert len(data) <= stream.most
        assert stream.skip(skipped) == min(skipped, len(data))
        target = np.zeros(wanted, np.uint8)
        held = stream.fill(target)
    assert target[:held].tobytes() == data[skipped : skipped + wanted]
    assert held == max(0, min(wanted, len(data) - skipped))


def test_a_plain_file_may_begin_like_gzip_where_it_is_said_to_be_plain(tmp_path):
    (tmp_path / "a").write_bytes(b"\x1f\x8b and more")
    assert whole(tmp_path / "a", packing="none") == b"\x1f\x8b and more"
    with pytest.raises(ImageError, match="damaged"):
        whole(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"a", b"ab"])
def test_short_files_end(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert whole(tmp_path / "a") == content


@pytest.mark.parametrize("at", [12, 900, -9, -3])
def test_changed_and_cut_streams_are_refused(tmp_path, at):
    packed = bytearray(gzip.compress(np.random.default_rng(0).bytes(5000), mtime=0))
    packed[at] ^= 0x55
    (tmp_path / "a").write_bytes(packed)
    with pytest.raises(ImageError, match="damaged"):
        whole(tmp_path / "a")
    (tmp_path / "a").write_bytes(gzip.compress(bytes(5000))[:-4])
    with pytest.raises(ImageError, match="cut off"):
        whole(tmp_path / "a")
