import pytest

from llmc.runtimes.bench.load.http_stream import AnswerReader, BrokenAnswerError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def read(*pieces: bytes) -> AnswerReader:
    """Each piece comes a second after the one before it."""
    reader = AnswerReader()
    for moment, piece in enumerate(pieces):
        reader.feed(piece, float(moment))
    return reader


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_events_have_the_moment_at_which_they_were_complete() -> None:
    reader = read(CHUNKED, chunk(b"data: a\n\n"), chunk(b"data: b"), chunk(b"\n\n"), b"0\r\n\r\n")
    assert reader.events == [(1.0, "a"), (3.0, "b")]
    assert reader.is_complete
    assert reader.is_stream


def test_events_are_the_same_however_bytes_are_cut() -> None:
    whole = CHUNKED + chunk(b'data: {"a": 1}\r\n\r\n: ping\n\ndata: b\nda') + chunk(b"ta: c\n\n") + b"0\r\n\r\n"
    for size in range(1, len(whole)):
        reader = read(*(whole[at : at + size] for at in range(0, len(whole), size)))
        assert [data for _, data in reader.events] == ['{"a": 1}', "b\nc"]
        assert reader.is_complete


def test_several_events_of_one_packet_have_one_moment() -> None:
    assert read(CHUNKED + chunk(b"data: a\n\ndata: b\n\n")).events == [(0.0, "a"), (0.0, "b")]


def test_a_body_of_known_length_or_until_the_end() -> None:
    reader = read(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbu", b"sy")
    assert (reader.status, reader.body, reader.is_complete, reader.is_stream) == (503, b"busy", True, False)
    assert read(b"HTTP/1.1 204 None\r\nContent-Length: 0\r\n\r\n").is_complete
    reader = read(HEAD + b"\r\ndata: a\n\n")
    assert not reader.is_complete
    reader.end()
    assert reader.is_complete


def test_an_interim_answer_is_not_the_answer() -> None:
    assert read(b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED).status == 200


def test_a_connection_that_ends_too_soon_is_a_failure_unless_all_was_said() -> None:
    for pieces in (
        [CHUNKED],
        [CHUNKED, chunk(b"data: a\n\n")],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"],
        [b""],
    ):
        with pytest.raises(BrokenAnswerError, match="closed"):
            read(*pieces).end()
    read(CHUNKED, chunk(b"data: [DONE]\n\n")).end()


@pytest.mark.parametrize("data", [b"SSH-2.0-x\r\n\r\n", b"\r\n\r\n", b"x" * 70_000, CHUNKED + b"many\r\n"])
def test_what_is_no_http_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenAnswerError):
        read(data)
