using LanguageModel;
using LanguageModel.Training;
using Xunit;

namespace FlaSharp.Tests.Samples;

public sealed class ScheduleTests
{
    [Fact]
    public void Learning_rate_warms_up_then_falls_to_a_tenth()
    {
        Assert.Equal(0.1, LearningRate.At(0, peak: 1, warmup: 10, total: 110), 12);
        Assert.Equal(1.0, LearningRate.At(9, 1, 10, 110), 12);
        Assert.Equal(1.0, LearningRate.At(10, 1, 10, 110), 12);
        Assert.Equal(0.55, LearningRate.At(60, 1, 10, 110), 12);
        Assert.Equal(0.1, LearningRate.At(110, 1, 10, 110), 12);
        var rates = Enumerable.Range(10, 101).Select(step => LearningRate.At(step, 1, 10, 110)).ToList();
        Assert.Equal(rates.OrderDescending(), rates);
    }

    [Fact]
    public void Warm_up_is_the_same_before_and_after_the_number_of_steps_is_known()
    {
        for (int step = 0; step < StepBudget.CalibrationSteps; step++)
            Assert.Equal(LearningRate.At(step, 1, 50, null), LearningRate.At(step, 1, 50, 400));
    }

    [Theory]
    [InlineData(1), InlineData(2), InlineData(3)]
    public void A_short_run_has_a_schedule(int total)
    {
        for (int step = 0; step < total; step++)
            Assert.InRange(LearningRate.At(step, 1, 50, total), 0.1, 1);
    }

    [Fact]
    public void The_number_of_steps_follows_from_the_median_speed_and_the_time_left()
    {
        var budget = new StepBudget(minutes: 1);
        int? total = null;
        for (int step = 1; step <= StepBudget.CalibrationSteps; step++)
        {
            Assert.Null(total);
            total = budget.Add(step < 4 ? 2.0 : 0.1, elapsed: 10, step);
        }

        Assert.Equal(StepBudget.CalibrationSteps + (int)(50 * 0.92 / 0.1), total);
    }

    [Fact]
    public void Slow_steps_use_no_more_than_half_the_time_for_measuring()
    {
        var budget = new StepBudget(minutes: 1);
        Assert.Null(budget.Add(20, elapsed: 20, step: 1));
        Assert.Equal(2, budget.Add(20, elapsed: 40, step: 2));
    }

    [Fact]
    public void Loss_scale_halves_on_overflow_and_doubles_after_many_good_steps()
    {
        var scale = new LossScale(Precision.Fp16);
        Assert.Equal(65536, scale.Value);
        Assert.False(scale.Update(double.PositiveInfinity));
        Assert.False(scale.Update(double.NaN));
        Assert.Equal(16384, scale.Value);
        for (int i = 0; i < 500; i++)
            Assert.True(scale.Update(1));
        Assert.Equal(32768, scale.Value);
    }

    [Theory]
    [InlineData("Fp32"), InlineData("Bf16")]
    public void Without_fp16_a_gradient_that_is_not_finite_ends_training(string precision)
    {
        var scale = new LossScale(Enum.Parse<Precision>(precision));
        Assert.True(scale.Update(1e30));
        Assert.Equal(1, scale.Value);
        Assert.Throws<UserError>(() => scale.Update(double.NaN));
    }
}
