namespace LanguageModel;

/// <summary>Something the user can put right: printed as one line, without a stack.</summary>
internal sealed class UserError(string message) : Exception(message);
