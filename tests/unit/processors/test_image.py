"""What a model is shown is what a person sees, and nothing unsafe is decoded on the way."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from mmrl.errors import MediaError
from mmrl.processors.image import Image
from mmrl.types import MediaRef

# How a file stores an upright picture, by EXIF orientation: where its row 0 and its column 0 belong.
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright.swapaxes(0, 1)[::-1],  # right, top
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


def load(path, **settings_):
    return Image(**settings_).load(MediaRef(kind="image", path=path.name, root=str(path.parent)))


def colour(medium, x=10, y=10):
    return tuple(int(value) for value in medium.original[y, x])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_is_turned_upright_once(tmp_path, orientation):
    upright = np.zeros((56, 112, 3), dtype=np.uint8)
    upright[8:24, 8:40] = (255, 0, 0)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    stored = Pillow.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(path, quality=95, subsampling=0, exif=exif)
    medium = load(path)
    assert medium.frame.original == medium.frame.seen == (112, 56)
    assert medium.original.shape == medium.data.shape == (56, 112, 3)
    # A box on the upright picture holds the mark, and nothing else does.
    assert np.abs(medium.original.astype(int) - upright).max() < 20
    assert np.abs(medium.data.astype(int) - upright).max() < 20


def test_a_loaded_image_is_framed_as_a_whole(tmp_path, noise):
    path = tmp_path / "a.png"
    Pillow.fromarray(noise(200, 100)).save(path)
    medium = load(path, min_pixels=56 * 28, max_pixels=56 * 28)
    assert medium.kind == "image"
    assert medium.label == "a.png"
    assert medium.parent is None
    assert (medium.frame.original, medium.frame.seen) == ((200, 100), (56, 28))
    assert (medium.frame.offset, medium.frame.scale) == ((0.0, 0.0), (200 / 56, 100 / 28))
    assert medium.frame.to_original((0, 0, 56, 28)) == pytest.approx((0, 0, 200, 100))
    assert (medium.original == noise(200, 100)).all()


def test_an_image_may_be_given_as_bytes(noise):
    file = io.BytesIO()
    Pillow.fromarray(noise(56, 56)).save(file, "PNG")
    medium = Image().load(MediaRef(kind="image", data=file.getvalue()))
    assert (medium.data == noise(56, 56)).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
def test_a_truncated_file_is_refused_by_name(tmp_path, noise, suffix):
    path = tmp_path / f"half.{suffix}"
    Pillow.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=rf"image half\.{suffix}: cannot be decoded \(.*\); replace the file"):
        load(path)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"not an image at all"])
def test_what_is_no_image_is_refused(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"image a\.png: cannot be decoded"):
        load(path)


def png_header(width, height):
    """A PNG of a few bytes whose header claims width x height."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [8_000, 12_000])  # below and above the size at which Pillow warns
def test_a_bomb_is_refused_from_its_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(MediaError, match=rf"image bomb\.png: {side} x {side} is over the cap of 50000000 pixels"):
        load(path)


def test_a_bomb_that_pillow_itself_refuses_is_named_too(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60_000, 60_000))
    with pytest.raises(MediaError, match=r"image bomb\.png: far over the cap of 50000000 pixels"):
        load(path)


def test_the_cap_on_source_pixels_is_inclusive(tmp_path):
    path = tmp_path / "a.png"
    Pillow.new("RGB", (60, 50)).save(path)
    assert load(path, max_source_pixels=3000).frame.original == (60, 50)
    with pytest.raises(MediaError, match="60 x 50 is over the cap of 2999 pixels"):
        load(path, max_source_pixels=2999)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    Pillow.new("RGB", (56, 56)).save(path)
    size = path.stat().st_size
    assert load(path, max_source_bytes=size).frame.original == (56, 56)
    with pytest.raises(MediaError, match=rf"image a\.png: file is larger than {size - 1} bytes"):
        load(path, max_source_bytes=size - 1)


@pytest.mark.parametrize("suffix", ["ppm", "ico", "eps", "pdf", "tga"])
def test_a_format_off_the_list_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Pillow.new("RGB", (64, 64)).save(path)
    with pytest.raises(MediaError, match="cannot be decoded"):
        load(path)


def test_the_content_decides_the_format_not_the_name(tmp_path):
    Pillow.new("RGB", (64, 64), (10, 20, 30)).save(tmp_path / "a.png")
    assert colour(load((tmp_path / "a.png").rename(tmp_path / "a.jpg"))) == (10, 20, 30)


@pytest.mark.parametrize("way", ["up", "absolute", "link", "linked folder"])
def test_a_path_that_leads_out_of_its_folder_is_refused(tmp_path, way):
    root = tmp_path / "root"
    root.mkdir()
    Pillow.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    path = {
        "up": "../secret.png",
        "absolute": str(tmp_path / "secret.png"),
        "link": "link.png",
        "linked folder": "folder/secret.png",
    }[way]
    with pytest.raises(MediaError, match="leads out of its folder") as caught:
        Image().load(MediaRef(kind="image", path=path, root=str(root)))
    assert path in str(caught.value)


def test_a_folder_beside_the_root_of_a_like_name_is_outside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    Pillow.new("RGB", (64, 64)).save(tmp_path / "root2" / "a.png")
    with pytest.raises(MediaError, match="leads out of its folder"):
        Image().load(MediaRef(kind="image", path="../root2/a.png", root=str(tmp_path / "root")))


def test_a_link_inside_the_folder_is_followed(tmp_path):
    Pillow.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert colour(load(tmp_path / "link.png")) == (1, 2, 3)


@pytest.mark.parametrize("path", ["nul\0.png", "\ud800.png", "x" * 5000 + ".png", "."])
def test_a_path_that_no_file_can_have_is_a_media_error(tmp_path, path):
    with pytest.raises(MediaError):
        Image().load(MediaRef(kind="image", path=path, root=str(tmp_path)))


def test_transparency_is_laid_on_white(tmp_path):
    layer = np.zeros((56, 56, 4), dtype=np.uint8)  # black, transparent ...
    layer[20:, :, 3] = 255  # ... opaque below
    layer[40:, :, 3] = 51  # ... a fifth below that
    Pillow.fromarray(layer).save(tmp_path / "a.png")
    medium = load(tmp_path / "a.png")
    assert colour(medium, y=10) == (255, 255, 255)
    assert colour(medium, y=30) == (0, 0, 0)
    assert colour(medium, y=50) == (204, 204, 204)


def test_grey_with_transparency_is_laid_on_white(tmp_path):
    Pillow.new("LA", (56, 56), (0, 51)).save(tmp_path / "a.png")
    assert colour(load(tmp_path / "a.png")) == (204, 204, 204)


def test_a_palette_gives_its_colours_and_its_transparent_entry_is_white(tmp_path):
    image = Pillow.new("P", (56, 56), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.paste(0, (0, 0, 20, 20))
    image.save(tmp_path / "a.png", transparency=0)
    medium = load(tmp_path / "a.png")
    assert colour(medium, 30, 30) == (200, 100, 50)
    assert colour(medium, 10, 10) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(("deep", "shown"), [(0, 0), (257 * 100, 100), (65535, 255)])
def test_sixteen_bit_grey_is_scaled_to_eight(tmp_path, deep, shown, suffix):
    path = tmp_path / f"a.{suffix}"
    Pillow.fromarray(np.full((56, 56), deep, dtype=np.uint16)).save(path)
    assert colour(load(path)) == (shown, shown, shown)


def test_cmyk_and_one_bit_become_rgb(tmp_path):
    Pillow.new("CMYK", (56, 56), (0, 255, 255, 0)).save(tmp_path / "a.tiff")
    assert colour(load(tmp_path / "a.tiff")) == (255, 0, 0)
    Pillow.new("1", (56, 56), 1).save(tmp_path / "b.png")
    assert colour(load(tmp_path / "b.png")) == (255, 255, 255)


def test_of_an_animation_the_first_frame_is_shown(tmp_path):
    frames = [Pillow.new("RGB", (56, 56), colour_) for colour_ in ((200, 0, 0), (0, 200, 0))]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert colour(load(tmp_path / "a.webp")) == (200, 0, 0)


def test_a_narrow_file_is_refused_by_name(tmp_path):
    Pillow.new("RGB", (401, 2)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"image a\.png: 401 x 2 is too narrow"):
        load(tmp_path / "a.png")


def test_the_same_view_of_the_same_pixels_has_the_same_key(tmp_path, noise):
    Pillow.fromarray(noise(56, 56)).save(tmp_path / "a.png")
    Pillow.fromarray(noise(56, 56)).save(tmp_path / "b.bmp")
    assert load(tmp_path / "a.png").key == load(tmp_path / "b.bmp").key
