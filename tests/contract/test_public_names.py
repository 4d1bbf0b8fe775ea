import importlib.metadata

import medseg

PUBLIC = """
Batch Budget Case CaseScores Dataset Geometry Image Label LabelMap Labels LandmarkScores Landmarks LossTerm
MedsegError ModelBundle Network NetworkOutput Page Picture Plan PredictOptions Prediction Progress RunReport Step
Topology __version__ check_dataset check_plan convert evaluate evaluate_landmarks inspect list_networks load_model
load_plan mean_dice overlay_png plan predict_folder read_curves read_dataset read_image read_labels read_landmarks
score_case summarise tensorboard train write_labels write_landmarks write_page write_record write_report
""".split()


def test_public_names_change_on_purpose_only():
    assert sorted(medseg.__all__) == sorted(PUBLIC)


def test_every_public_name_loads_and_is_documented():
    for name in medseg.__all__:
        assert getattr(medseg, name).__doc__, name
    assert set(medseg.__all__) <= set(dir(medseg))


def test_type_checkers_see_the_same_names():
    source = (__import__("pathlib").Path(medseg.__file__)).read_text(encoding="utf-8")
    seen = [line.rsplit(" as ", 1)[1] for line in source.splitlines() if " as " in line and "import" in line]
    assert sorted(seen) == sorted(set(PUBLIC) - {"__version__"})


def test_the_version_is_stated_once():
    assert medseg.__version__ == importlib.metadata.version("medseg")
