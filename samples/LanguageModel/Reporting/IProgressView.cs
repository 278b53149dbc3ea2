namespace LanguageModel.Reporting;

/// <summary>Shows training as it goes.</summary>
internal interface IProgressView
{
    void Step(StepReport report);

    void Note(string line);
}
