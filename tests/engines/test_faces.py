"""Faces on real photographs: found or not, told apart, and how far turned."""

import shutil

import pytest
from PIL import Image

from benchmarks.faces import faces, main, separation
from isengard.domain.evaluation import centroid, left_out
from isengard.domain.identity import ScorerKind, likeness
from isengard.engines.faces import SHA256, FaceScorer
from isengard.errors import MissingWeights
from isengard.settings import ASSETS
from isengard.wiring import open_scorer
from tests.photos import CLEAR, UNCLEAR, photo


@pytest.fixture(scope="module")
def scorer():
    return open_scorer(ScorerKind.FACES)


@pytest.fixture(scope="module")
def seen(scorer):
    """The sighting of a face; each photo is looked at once."""
    kept = {}

    def see(face):
        path, key = photo(face.file), (face.file, face.quarter_turns)
        if key not in kept:
            with Image.open(path) as opened:
                width = opened.size[face.quarter_turns % 2]
            kept[key] = width, faces(scorer, path, quarter_turns=face.quarter_turns)
        width, found = kept[key]
        return min(found, key=lambda one: abs(one.box.left + one.box.width / 2 - width * face.middle))

    return see


@pytest.fixture(scope="module")
def people(seen):
    return {name: [seen(face).embedding for face in found] for name, found in CLEAR.items()}


def opened(name):
    with Image.open(photo(name)) as picture:
        return picture.convert("RGB")


def test_one_persons_photos_are_always_more_alike_than_two_peoples(people):
    found = separation(people)
    assert (len(found.same), len(found.different)) == (25, 146)
    assert found.same[0] > 0.35
    assert found.different[-1] < 0.3


def test_the_mean_of_the_photos_tells_people_apart_more_clearly_than_one_photo_does(people):
    own = [cosine for found in people.values() if len(found) > 2 for cosine in left_out(found)]
    strangers = [
        max(sum(a * b for a, b in zip(one, centroid(found), strict=True)) for one in others)
        for name, found in people.items()
        if len(found) > 2
        for other, others in people.items()
        if other != name
    ]
    assert min(own) > 0.45
    assert max(strangers) < 0.3


def test_clear_faces_are_reliable_and_seen_from_the_front(seen):
    found = [seen(face) for faces in CLEAR.values() for face in faces]
    assert all(one.reliable and one.turn < 0.4 for one in found)


def test_a_face_in_profile_is_said_to_be_turned(seen):
    assert seen(UNCLEAR[1]).turn > 1


def test_a_photo_on_its_side_shows_its_people_once_it_is_turned(scorer):
    assert faces(scorer, photo("wayne.jpg")) == ()
    assert len(faces(scorer, photo("wayne.jpg"), quarter_turns=3)) == 2


@pytest.mark.parametrize("name", ["sunset.jpg", "skagen.jpg", "donna.jpg", "spiff.jpg"])
def test_a_landscape_a_dog_and_a_rabbit_have_no_face(scorer, name):
    assert faces(scorer, photo(name)) == ()


def test_of_two_people_the_larger_comes_first_and_the_wanted_one_is_found(scorer, people):
    found = faces(scorer, photo("bar55_2.jpg"))
    assert found[0].box.width >= found[1].box.width
    for name in ("jesper", "anne_helene"):
        assert likeness(found, centroid(people[name])) > 0.5


def test_a_small_face_is_found_but_not_trusted(scorer):
    whole = opened("obama.jpg")
    small = whole.resize((whole.width // 10, whole.height // 10), Image.Resampling.LANCZOS)
    (found,) = scorer.find([small])
    assert [one.reliable for one in found] == [False]
    assert likeness(found, found[0].embedding) is None


def test_boxes_are_in_pixels_of_the_picture_as_it_came(scorer):
    whole = opened("obama.jpg")
    (small,), (large,) = scorer.find([whole, whole.resize((whole.width * 2, whole.height * 2))])
    assert large.box.left == pytest.approx(2 * small.box.left, rel=0.05)
    assert large.box.width == pytest.approx(2 * small.box.width, rel=0.05)


def test_any_mode_of_picture_is_taken(scorer):
    grey = opened("obama.jpg").convert("L")
    assert [len(found) for found in scorer.find([grey, grey.convert("RGBA")])] == [1, 1]


def test_weights_that_are_missing_or_others_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(MissingWeights, match=r"yunet\.onnx cannot be read .*: install Isengard anew"):
        FaceScorer(tmp_path)
    for name in SHA256:
        shutil.copy(ASSETS / "faces" / name, tmp_path / name)
    (tmp_path / "sface.onnx").write_bytes(b"another")
    with pytest.raises(MissingWeights, match=r"sface\.onnx is not the file it should be"):
        FaceScorer(tmp_path)


def test_the_measurement_says_how_far_apart_they_are(tmp_path, capsys):
    for name in ("obama.jpg", "obama3.jpg", "biden.jpg", "sunset.jpg"):
        shutil.copy(photo(name), tmp_path / name.replace("3", "_3"))
    main([str(tmp_path)])
    first, same, different, last = capsys.readouterr().out.splitlines()
    assert first == "3 photos of 2 people, 1 more without a face"
    assert same.split()[:2] == ["same", "1"]
    assert different.split()[:2] == ["different", "2"]
    assert last == "no overlap"
