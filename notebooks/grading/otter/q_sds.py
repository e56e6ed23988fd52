from otter.test_files import test_case

from psd_mini.checks import check_sds

OK_FORMAT, name, points = False, "q_sds", None


@test_case(name="most of it is right", points=1)
def test_most(sds):
    report = check_sds(sds)
    assert report.score >= 0.5, report


@test_case(name="all of it is right", points=3)
def test_all(sds):
    check_sds(sds).require()
