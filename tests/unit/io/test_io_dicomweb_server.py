import pytest

from medseg.errors import NetworkError
from medseg.io.dicomweb_server import open_server, redacted


def test_files_of_credentials(tmp_path):
    path = tmp_path / "token"
    for text, header in (("Bearer abc.def\n", "Bearer abc.def"), ("abc.def", "Bearer abc.def"), ("a:b", "Basic YTpi")):
        path.write_text(text)
        path.chmod(0o600)
        assert open_server("https://pacs/dicom-web", auth=path)[0].authorization == header
    path.chmod(0o644)
    assert "other users can read" in open_server("https://pacs/dicom-web", auth=path)[1][0]
    assert "unencrypted" in open_server("http://pacs/dicom-web", auth=path)[1][-1]
    for text in ("", "a\nb", "a\x00b"):
        path.write_text(text)
        with pytest.raises(NetworkError, match="holds no credentials"):
            open_server("https://pacs/dicom-web", auth=path)
    with pytest.raises(NetworkError, match="cannot be read"):
        open_server("https://pacs/dicom-web", auth=tmp_path / "none")


@pytest.mark.parametrize("url", ["https://me:secret@pacs/dicom-web", "ftp://me:secret@pacs", "http://", "pacs:8042"])
def test_urls_with_a_password_and_others_are_refused_without_telling_it(url):
    with pytest.raises(NetworkError) as caught:
        open_server(url)
    assert "secret" not in str(caught.value)


def test_a_redacted_url_keeps_host_and_path():
    assert redacted("https://a:b@[::1]:80/x?token=c#d") == "https://[::1]:80/x"
